"""GenD: a vision model tuned in its layer norms only.

Source: Yermakov et al. 2025, "Deepfake Detection that Generalizes Across Benchmarks" (GenD),
arXiv:2508.06248 (layer-norm tuning, features on the sphere, alignment and uniformity, paired real
and forged faces); the two losses are those of Wang and Isola 2020, arXiv:2005.10242.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector
from stillroom.recipes import Reference

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork
    from stillroom.models.encoders.vision import VisionModel

__all__ = ["Gend"]


class Gend(ImageDetector):
    """A vision model with trainable layer norms."""

    paper: ClassVar[str] = "arXiv:2508.06248"
    limitations: ClassVar[tuple[str, ...]] = (
        "It knows the traces of the forgeries it learned from, and no others.",
    )
    checkpoint: Reference = Field(description="a vision model: CLIP, SigLIP, DINOv2, ViT")
    alignment: float = Field(default=0.1, ge=0, description="weight of the alignment loss")
    uniformity: float = Field(default=0.5, ge=0, description="weight of the uniformity loss")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.models.encoders.vision import load_vision

        return self._tune(load_vision(Path(self.checkpoint)))

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        from stillroom.models.encoders.vision import build_vision

        return self._tune(build_vision(config))

    def _tune(self, vision: VisionModel) -> DetectorNetwork:
        from stillroom.forensics.networks.vision_backbone import (
            VisionBackbone,
            unfreeze_layer_norms,
        )

        tower = VisionBackbone(
            vision, to_sphere=True, alignment=self.alignment, uniformity=self.uniformity
        )
        unfreeze_layer_norms(tower.tower)
        return tower
