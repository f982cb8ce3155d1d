"""The network that says where a face was blended: a map beside the verdict."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.choices import Weights
from stillroom.forensics.networks import Backbone, Judged, Network, Normalize

__all__ = ["BoundaryMap", "boundary_of"]

_COARSE = 8


class BoundaryMap(Network):
    """A backbone whose last places are raised to an eighth of the picture, and read as a map."""

    def __init__(self, name: str, weights: Weights, map_weight: float) -> None:
        """Build it on one of timm's networks; the map's loss counts ``map_weight`` times."""
        super().__init__()
        self.normalize = Normalize()
        self.trunk = Backbone(name, weights)
        self.raise_up = nn.Sequential(nn.Conv2d(self.trunk.wide, 64, 1), nn.ReLU(inplace=True))
        self.read = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 1, 1)
        )
        self.from_map = nn.Linear(2, 1)
        self.map_weight = map_weight

    @override
    def judge(self, images: Tensor) -> Judged:
        found = self.trunk(self.normalize(images))
        size = (images.shape[-2] // _COARSE, images.shape[-1] // _COARSE)
        raised = functional.interpolate(self.raise_up(found.grid), size=size, mode="bilinear")
        places = self.read(raised)[:, 0]  # (B, H / 8, W / 8)
        seen = torch.sigmoid(places).flatten(1)
        told = self.from_map(torch.stack([seen.mean(1), seen.amax(1)], dim=1))[:, 0]
        return Judged(found.logits + told, found.features, found.grid, places)

    @override
    def loss(
        self, judged: Judged, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        plain, _ = super().loss(judged, labels, masks)
        if judged.map is None:
            raise TypeError("this network gives a map")
        size = (judged.map.shape[-2], judged.map.shape[-1])
        wanted = functional.adaptive_avg_pool2d(boundary_of(masks)[:, None], size)
        gap = (torch.sigmoid(judged.map) - wanted[:, 0]).square().mean((1, 2)).sum()
        return plain + self.map_weight * gap, {"map_loss": float(gap.detach())}


def boundary_of(masks: Tensor) -> Tensor:
    """Return the X-ray of masks in [0, 1], of the same shape: 4 M (1 - M)."""
    return 4 * masks * (1 - masks)
