"""Detectors on a vision model trained by others: frozen, or tuned in a small part of its weights.

Source: named by the methods that use them, ``univfd``, ``gend`` and ``effort``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.networks import Judged, Network, Normalize, freeze
from stillroom.models.vision import Vision

__all__ = ["Residual", "Tower", "free_norms", "split_attention"]

_ATTENTION = ("attn", "attention")
_LEAST = 1e-12


class Tower(Network):
    """A vision model, frozen but for what a method frees, and one linear output."""

    def __init__(
        self,
        vision: Vision,
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
    def judge(self, images: Tensor) -> Judged:
        side = self._vision[0].side
        if images.shape[-1] != side or images.shape[-2] != side:
            images = functional.interpolate(
                images, size=(side, side), mode="bilinear", antialias=True
            )
        features = self._vision[0].vectors(self.normalize(images))  # (B, D)
        if self.to_sphere:
            features = functional.normalize(features, dim=1)
        return Judged(self.head(features)[:, 0], features)

    @override
    def loss(
        self, judged: Judged, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        total, parts = super().loss(judged, labels, masks)
        count = len(labels)
        if self.alignment or self.uniformity:
            near, spread = _sphere_losses(judged.features, labels)
            total = total + count * (self.alignment * near + self.uniformity * spread)
            parts = {**parts, "alignment": float(near.detach()) * count}
        if self.orthogonality:
            off = sum(
                (part.orthogonality() for part in self.modules() if isinstance(part, Residual)),
                start=total.new_zeros(()),
            )
            total = total + count * self.orthogonality * off
        return total, parts


class Residual(nn.Module):
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


def free_norms(module: nn.Module) -> int:
    """Let the scales and shifts of every layer norm learn; return how many numbers that are."""
    count = 0
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm"):
            for value in part.parameters(recurse=False):
                value.requires_grad_(True)
                count += value.numel()
    return count


def split_attention(module: nn.Module, rank: int) -> int:
    """Put a ``Residual`` in place of every linear map within attention; return how many."""
    found = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and any(word in name.lower() for word in _ATTENTION)
    ]
    for name, part in found:
        place, _, last = name.rpartition(".")
        setattr(module.get_submodule(place), last, Residual(part, rank))
    return len(found)


def _sphere_losses(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return alignment of pairs of one label, and uniformity, of unit vectors (B, D)."""
    apart = torch.cdist(features, features).square()
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None]) & other
    near = (apart * same).sum() / same.sum().clamp(min=1)
    spread = ((-2 * apart).exp() * other).sum() / other.sum().clamp(min=1)
    return near, (spread + _LEAST).log()
