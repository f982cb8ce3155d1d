"""VisionBackbone: a pretrained vision model with one logit, of which methods tune small parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.networks.interfaces import (
    DetectorNetwork,
    DetectorOutput,
    Normalize,
    freeze,
)
from stillroom.models.encoders.vision import VisionModel

__all__ = ["VisionBackbone"]


class VisionBackbone(DetectorNetwork):
    """A frozen vision model, except for parts that a method unfreezes, and one linear logit."""

    def __init__(self, vision: VisionModel, *, to_sphere: bool = False) -> None:
        """Wrap a vision model.

        Args:
            vision: The model, which is frozen here; methods unfreeze parts of it afterwards.
            to_sphere: Normalize features to length 1 before the linear layer.
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
