"""Detector networks on pretrained vision models, and temporal heads over frames.

Source: see the detectors ``univfd``, ``gend`` and ``effort``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.interfaces import IMAGE_DETECTORS
from stillroom.forensics.networks.interfaces import (
    DetectorNetwork,
    DetectorOutput,
    Normalize,
    freeze,
)
from stillroom.models.encoders.vision import VisionModel

if TYPE_CHECKING:
    from stillroom.forensics.image_detectors.temporal import Temporal

__all__ = [
    "SvdResidualLinear",
    "TemporalHead",
    "VisionBackbone",
    "decompose_attention",
    "rebuild_temporal_head",
    "unfreeze_layer_norms",
]


_ATTENTION = ("attn", "attention")


_LEAST = 1e-12


class VisionBackbone(DetectorNetwork):
    """A frozen vision model, except for parts that a method unfreezes, and one linear logit."""

    def __init__(
        self,
        vision: VisionModel,
        *,
        to_sphere: bool = False,
        alignment: float = 0.0,
        uniformity: float = 0.0,
        orthogonality: float = 0.0,
    ) -> None:
        """Wrap a vision model.

        Args:
            vision: The model, which is frozen here; methods unfreeze parts of it afterwards.
            to_sphere: Normalize features to length 1 before the linear layer.
            alignment: Weight of the loss that pulls features of one label together.
            uniformity: Weight of the loss that spreads features over the sphere.
            orthogonality: Weight of the loss that keeps residual factors orthonormal.
        """
        super().__init__()
        self._vision = (vision,)  # a tuple: its model must not be registered twice
        self.tower: nn.Module = vision.model
        freeze(self.tower)
        self.normalize = Normalize(vision.mean, vision.deviation)
        with torch.inference_mode():
            probe = vision.vectors(torch.zeros(1, 3, vision.side, vision.side))
        self.head = nn.Linear(probe.shape[1], 1)
        self.to_sphere = to_sphere
        self.alignment, self.uniformity = alignment, uniformity
        self.orthogonality = orthogonality

    @property
    def config(self) -> Mapping[str, Any]:
        """Values besides weights and settings that are needed to rebuild the network."""
        return self._vision[0].to_json()

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tower.eval()  # these methods do not use the tower's dropout
        return self

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        side = self._vision[0].side
        if images.shape[-1] != side or images.shape[-2] != side:
            images = functional.interpolate(
                images, size=(side, side), mode="bilinear", antialias=True
            )
        features = self._vision[0].vectors(self.normalize(images))  # (B, D)
        if self.to_sphere:
            features = functional.normalize(features, dim=1)
        return DetectorOutput(self.head(features)[:, 0], features)

    @override
    def loss(
        self, judged: DetectorOutput, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        total, parts = super().loss(judged, labels, masks)
        count = len(labels)
        if self.alignment or self.uniformity:
            near, spread = _sphere_losses(judged.features, labels)
            total = total + count * (self.alignment * near + self.uniformity * spread)
            parts = {**parts, "alignment": float(near.detach()) * count}
        if self.orthogonality:
            off = sum(
                (
                    part.orthogonality()
                    for part in self.modules()
                    if isinstance(part, SvdResidualLinear)
                ),
                start=total.new_zeros(()),
            )
            total = total + count * self.orthogonality * off
        return total, parts


class SvdResidualLinear(nn.Module):
    """A linear layer split by its singular values: large ones fixed, small ones trainable."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Split a linear layer; its ``rank`` smallest singular triples are trainable."""
        super().__init__()
        left, sizes, right = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        num_fixed = max(len(sizes) - rank, 0)
        main = (left[:, :num_fixed] * sizes[:num_fixed]) @ right[:num_fixed]
        self.main = nn.Parameter(main, requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.left = nn.Parameter(left[:, num_fixed:].clone())
        self.sizes = nn.Parameter(sizes[num_fixed:].clone())
        self.right = nn.Parameter(right[num_fixed:].clone())

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        learned = ((inputs @ self.right.T) * self.sizes) @ self.left.T
        return functional.linear(inputs, self.main, self.bias) + learned

    def orthogonality(self) -> Tensor:
        """Return the squared deviation of the trainable factors from orthonormality."""
        eye = torch.eye(len(self.sizes), device=self.sizes.device)
        left = self.left.T @ self.left - eye
        right = self.right @ self.right.T - eye
        return left.square().sum() + right.square().sum()


def unfreeze_layer_norms(module: nn.Module) -> int:
    """Unfreeze scale and shift of every layer norm; return the number of parameters."""
    count = 0
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm"):
            for value in part.parameters(recurse=False):
                value.requires_grad_(True)
                count += value.numel()
    return count


def decompose_attention(module: nn.Module, rank: int) -> int:
    """Replace every linear layer within attention by ``SvdResidualLinear``; return the number."""
    linears = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and any(marker in name.lower() for marker in _ATTENTION)
    ]
    for name, part in linears:
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, SvdResidualLinear(part, rank))
    return len(linears)


def _sphere_losses(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return alignment of pairs of one label, and uniformity, of unit vectors (B, D)."""
    squared_distance = torch.cdist(features, features).square()
    off_diagonal = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None]) & off_diagonal
    near = (squared_distance * same).sum() / same.sum().clamp(min=1)
    spread = ((-2 * squared_distance).exp() * off_diagonal).sum() / off_diagonal.sum().clamp(min=1)
    return near, (spread + _LEAST).log()


_HEADS = 4


_FRAME_BATCH_SIZE = 16  # frames; with hundreds, memory access took most of the time


class TemporalHead(DetectorNetwork):
    """Classify clips (B, T, 3, H, W) of one face."""

    def __init__(self, base: DetectorNetwork, method: Temporal, config: Mapping[str, Any]) -> None:
        """Wrap an image detector, which is frozen here.

        Args:
            base: Network of the image detector.
            method: Settings of the temporal head.
            config: Values that are needed to rebuild ``base``.
        """
        super().__init__()
        self._config = dict(config)
        self.base = base
        freeze(self.base)
        width = method.width
        self.reduce = nn.Sequential(
            nn.LayerNorm(2 * (int(config["features"]) + 1)),
            nn.Linear(2 * (int(config["features"]) + 1), width),
            nn.GELU(),
        )
        self.mix = _make_mixer(method)
        self.head = nn.Linear(2 * width, 1)

    @property
    @override
    def config(self) -> Mapping[str, Any]:
        return self._config

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.base.eval()  # its batch statistics belong to the trained base
        return self

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        count, frames = images.shape[:2]
        every = images.flatten(0, 1)
        parts = (every,) if torch.compiler.is_compiling() else torch.split(every, _FRAME_BATCH_SIZE)
        with torch.no_grad():
            outputs = [self.base.forward_features(frames_part) for frames_part in parts]
        features = torch.cat([functional.normalize(output.features, dim=1) for output in outputs])
        states = torch.cat(
            [features, torch.cat([output.logits for output in outputs])[:, None]], dim=1
        )
        states = states.view(count, frames, -1)  # (B, T, D + 1)
        changes = torch.cat(
            [torch.zeros_like(states[:, :1]), states[:, 1:] - states[:, :-1]], dim=1
        )
        inputs = self.reduce(torch.cat([states, changes], dim=2))  # (B, T, width)
        mixed = self.mix(inputs)
        pooled = torch.cat([mixed.mean(1), mixed.amax(1)], dim=1)  # (B, 2 width)
        return DetectorOutput(self.head(pooled)[:, 0], pooled)


class _RecurrentMixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)[0]
        return outputs


class _ConvolutionMixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=2, dilation=2),
            nn.GELU(),
        )

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs.transpose(1, 2)).transpose(1, 2)
        return inputs + outputs


class _AttentionMixer(nn.Module):
    places: Tensor

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(frames, width) * 0.02)
        self.body = nn.TransformerEncoderLayer(
            width, _HEADS, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs + self.places[: inputs.shape[1]])
        return outputs


def _make_mixer(method: Temporal) -> nn.Module:
    if method.mixer == "gru":
        return _RecurrentMixer(method.width // 2 * 2)
    if method.mixer == "conv":
        return _ConvolutionMixer(method.width)
    return _AttentionMixer(method.width, method.frames)


def rebuild_temporal_head(method: Temporal, config: Mapping[str, Any]) -> TemporalHead:
    """Rebuild the network, whose weights the caller then replaces."""
    detector = IMAGE_DETECTORS.build(config["method"])
    base = detector.rebuild(int(config["image_size"]), config["network_config"])
    return TemporalHead(base, method, config)
