"""GenD: a vision model tuned in its layer norms only.

Source: Yermakov et al. 2025, "Deepfake Detection that Generalizes Across Benchmarks" (GenD),
arXiv:2508.06248 (layer-norm tuning, features on the sphere, alignment and uniformity, paired real
and forged faces); the two losses are those of Wang and Isola 2020, arXiv:2005.10242.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import VisionDetector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork
    from stillroom.models.encoders.vision import VisionModel

__all__ = ["Gend"]

_LEAST = 1e-12


class Gend(VisionDetector):
    """A vision model with trainable layer norms."""

    paper: ClassVar[str] = "arXiv:2508.06248"
    limitations: ClassVar[tuple[str, ...]] = (
        "It detects only traces of the forgery methods that it was trained on.",
    )
    alignment: float = Field(default=0.1, ge=0, description="weight of the alignment loss")
    uniformity: float = Field(default=0.5, ge=0, description="weight of the uniformity loss")

    @override
    def tune(self, vision: VisionModel) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import DetectorOutput, VisionBackbone

        alignment, uniformity = self.alignment, self.uniformity

        class GendNetwork(VisionBackbone):
            def loss(
                self, judged: DetectorOutput, labels: Tensor, masks: Tensor
            ) -> tuple[Tensor, dict[str, float]]:
                total, parts = super().loss(judged, labels, masks)
                if not alignment and not uniformity:
                    return total, parts
                count = len(labels)
                near, spread = _sphere_losses(judged.features, labels)
                total = total + count * (alignment * near + uniformity * spread)
                return total, {**parts, "alignment": float(near.detach()) * count}

        network = GendNetwork(vision, to_sphere=True)
        _unfreeze_layer_norms(network.tower)
        return network


def _unfreeze_layer_norms(module: nn.Module) -> int:
    """Unfreeze scale and shift of every layer norm; return the number of parameters."""
    from torch import nn

    count = 0
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm"):
            for value in part.parameters(recurse=False):
                value.requires_grad_(True)
                count += value.numel()
    return count


def _sphere_losses(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return alignment of pairs of one label, and uniformity, of unit vectors (B, D)."""
    import torch

    squared_distance = torch.cdist(features, features).square()
    off_diagonal = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None]) & off_diagonal
    near = (squared_distance * same).sum() / same.sum().clamp(min=1)
    spread = ((-2 * squared_distance).exp() * off_diagonal).sum() / off_diagonal.sum().clamp(min=1)
    return near, (spread + _LEAST).log()
