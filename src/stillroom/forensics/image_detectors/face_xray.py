"""Face X-ray: blending-boundary segmentation, and a score from it.

Source: Li et al. 2020, "Face X-ray for More General Face Forgery Detection", arXiv:1912.13458,
sections 3.1 (the X-ray is 4 M (1 - M) of the mask) and 3.3 (a map, then a classifier on it).
Differs: EfficientNet instead of HRNet, the map at an eighth of the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BackboneDetector, PretrainedWeights

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["FaceXray", "compute_boundary"]

_COARSE = 8  # the map is an eighth of the image


class FaceXray(BackboneDetector):
    """A map of blending boundaries, and a classifier on it."""

    paper: ClassVar[str] = "arXiv:1912.13458"
    limitations: ClassVar[tuple[str, ...]] = (
        "It looks for the boundary of a blend: a picture made as a whole has none.",
    )
    map_weight: float = Field(
        default=100.0, ge=0, description="weight of the map loss relative to the classifier's"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        import torch
        from torch import nn
        from torch.nn import functional

        from stillroom.forensics.networks.interfaces import (
            Backbone,
            DetectorNetwork,
            DetectorOutput,
            Normalize,
        )

        class FaceXrayNetwork(DetectorNetwork):
            def __init__(self, name: str, weights: PretrainedWeights, map_weight: float) -> None:
                super().__init__()
                self.normalize = Normalize()
                self.trunk = Backbone(name, weights)
                self.raise_up = nn.Sequential(
                    nn.Conv2d(self.trunk.wide, 64, 1), nn.ReLU(inplace=True)
                )
                self.read = nn.Sequential(
                    nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 1, 1)
                )
                self.from_map = nn.Linear(2, 1)
                self.map_weight = map_weight

            def forward_features(self, images: Tensor) -> DetectorOutput:
                backbone = self.trunk(self.normalize(images))
                size = (images.shape[-2] // _COARSE, images.shape[-1] // _COARSE)
                upsampled = functional.interpolate(
                    self.raise_up(backbone.grid), size=size, mode="bilinear"
                )
                boundary = self.read(upsampled)[:, 0]  # (B, H / 8, W / 8)
                probability = torch.sigmoid(boundary).flatten(1)
                map_logit = self.from_map(
                    torch.stack([probability.mean(1), probability.amax(1)], dim=1)
                )[:, 0]
                return DetectorOutput(
                    backbone.logits + map_logit, backbone.features, backbone.grid, boundary
                )

            def loss(
                self, judged: DetectorOutput, labels: Tensor, masks: Tensor
            ) -> tuple[Tensor, dict[str, float]]:
                plain, _ = super().loss(judged, labels, masks)
                if judged.map is None:
                    raise TypeError("the network's output has no map")
                size = (judged.map.shape[-2], judged.map.shape[-1])
                target = functional.adaptive_avg_pool2d(compute_boundary(masks)[:, None], size)
                gap = (torch.sigmoid(judged.map) - target[:, 0]).square().mean((1, 2)).sum()
                return plain + self.map_weight * gap, {"map_loss": float(gap.detach())}

        return FaceXrayNetwork(self.backbone, self.weights, self.map_weight)


def compute_boundary(masks: Tensor) -> Tensor:
    """Return the face X-ray of masks in [0, 1], of the same shape: 4 M (1 - M)."""
    return 4 * masks * (1 - masks)
