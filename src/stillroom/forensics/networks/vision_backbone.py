"""Detector networks on pretrained vision models, and temporal heads over frames.

Source: named by the methods that use them, ``univfd``, ``gend`` and ``effort``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.interfaces import DETECTORS
from stillroom.forensics.networks.interfaces import (
    DetectorNetwork,
    DetectorOutput,
    Normalize,
    freeze,
)
from stillroom.models.encoders.vision import VisionModel

if TYPE_CHECKING:
    from stillroom.forensics.detectors.temporal import Temporal

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
    """A vision model, frozen but for what a method frees, and one linear output."""

    def __init__(
        self,
        vision: VisionModel,
        *,
        to_sphere: bool = False,
        alignment: float = 0.0,
        uniformity: float = 0.0,
        orthogonality: float = 0.0,
    ) -> None:
        """Stand on a vision model.

        Args:
            vision: It is frozen here; methods free parts of it afterwards.
            to_sphere: Scale vectors to length 1 before the output reads them.
            alignment: Weight of the loss that draws vectors of one label together.
            uniformity: Weight of the loss that spreads vectors over the sphere.
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
    def kept(self) -> Mapping[str, Any]:
        """What has to be known beside the weights to build it again."""
        return self._vision[0].to_json()

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tower.eval()  # the tower's own dropout is no part of these methods
        return self

    @override
    def judge(self, images: Tensor) -> DetectorOutput:
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
    """A linear map split by its singular values: the large ones fixed, the small ones learned."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Split a linear map; its ``rank`` smallest singular triples learn."""
        super().__init__()
        left, sizes, right = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        kept = max(len(sizes) - rank, 0)
        main = (left[:, :kept] * sizes[:kept]) @ right[:kept]
        self.main = nn.Parameter(main, requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.left = nn.Parameter(left[:, kept:].clone())
        self.sizes = nn.Parameter(sizes[kept:].clone())
        self.right = nn.Parameter(right[kept:].clone())

    @override
    def forward(self, given: Tensor) -> Tensor:
        learned = ((given @ self.right.T) * self.sizes) @ self.left.T
        return functional.linear(given, self.main, self.bias) + learned

    def orthogonality(self) -> Tensor:
        """Return how far the learned factors are from orthonormal, squared."""
        eye = torch.eye(len(self.sizes), device=self.sizes.device)
        left = self.left.T @ self.left - eye
        right = self.right @ self.right.T - eye
        return left.square().sum() + right.square().sum()


def unfreeze_layer_norms(module: nn.Module) -> int:
    """Let the scales and shifts of every layer norm learn; return how many numbers that are."""
    count = 0
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm"):
            for value in part.parameters(recurse=False):
                value.requires_grad_(True)
                count += value.numel()
    return count


def decompose_attention(module: nn.Module, rank: int) -> int:
    """Put a ``SvdResidualLinear`` in place of every linear map within attention.

    Return how many.
    """
    found = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and any(word in name.lower() for word in _ATTENTION)
    ]
    for name, part in found:
        place, _, last = name.rpartition(".")
        setattr(module.get_submodule(place), last, SvdResidualLinear(part, rank))
    return len(found)


def _sphere_losses(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return alignment of pairs of one label, and uniformity, of unit vectors (B, D)."""
    apart = torch.cdist(features, features).square()
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None]) & other
    near = (apart * same).sum() / same.sum().clamp(min=1)
    spread = ((-2 * apart).exp() * other).sum() / other.sum().clamp(min=1)
    return near, (spread + _LEAST).log()


_HEADS = 4


_FRAME_BATCH_SIZE = 16  # frames; of hundreds, most of the time went into fetching memory


class TemporalHead(DetectorNetwork):
    """Reads clips (B, T, 3, H, W) of one face."""

    def __init__(self, base: DetectorNetwork, method: Temporal, kept: Mapping[str, Any]) -> None:
        """Stand on a detector of pictures, which is frozen here.

        Args:
            base: The network of pictures.
            method: What reads the frames.
            kept: What has to be known to build ``base`` again.
        """
        super().__init__()
        self._kept = dict(kept)
        self.base = base
        freeze(self.base)
        width = method.width
        self.reduce = nn.Sequential(
            nn.LayerNorm(2 * (int(kept["features"]) + 1)),
            nn.Linear(2 * (int(kept["features"]) + 1), width),
            nn.GELU(),
        )
        self.mix = _make_mixer(method)
        self.head = nn.Linear(2 * width, 1)

    @property
    @override
    def kept(self) -> Mapping[str, Any]:
        return self._kept

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.base.eval()  # its statistics are part of what was learned before
        return self

    @override
    def judge(self, images: Tensor) -> DetectorOutput:
        count, frames = images.shape[:2]
        every = images.flatten(0, 1)
        parts = (every,) if torch.compiler.is_compiling() else torch.split(every, _FRAME_BATCH_SIZE)
        with torch.no_grad():
            seen = [self.base.judge(some) for some in parts]
        features = torch.cat([functional.normalize(one.features, dim=1) for one in seen])
        told = torch.cat([features, torch.cat([one.logits for one in seen])[:, None]], dim=1)
        told = told.view(count, frames, -1)  # (B, T, D + 1)
        changes = torch.cat([torch.zeros_like(told[:, :1]), told[:, 1:] - told[:, :-1]], dim=1)
        given = self.reduce(torch.cat([told, changes], dim=2))  # (B, T, width)
        mixed = self.mix(given)
        whole = torch.cat([mixed.mean(1), mixed.amax(1)], dim=1)  # (B, 2 width)
        return DetectorOutput(self.head(whole)[:, 0], whole)


class _RecurrentMixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    @override
    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.body(given)[0]
        return found


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
    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.body(given.transpose(1, 2)).transpose(1, 2)
        return given + found


class _AttentionMixer(nn.Module):
    places: Tensor

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(frames, width) * 0.02)
        self.body = nn.TransformerEncoderLayer(
            width, _HEADS, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )

    @override
    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.body(given + self.places[: given.shape[1]])
        return found


def _make_mixer(method: Temporal) -> nn.Module:
    if method.mixer == "gru":
        return _RecurrentMixer(method.width // 2 * 2)
    if method.mixer == "conv":
        return _ConvolutionMixer(method.width)
    return _AttentionMixer(method.width, method.frames)


def rebuild_temporal_head(method: Temporal, kept: Mapping[str, Any]) -> TemporalHead:
    """Return the network, its weights about to be replaced."""
    base = DETECTORS.build(kept["method"]).rebuild(int(kept["pixels"]), kept["kept"])
    return TemporalHead(base, method, kept)
