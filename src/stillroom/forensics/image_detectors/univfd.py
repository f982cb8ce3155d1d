"""UnivFD: a linear probe on a frozen vision model.

Source: Ojha et al. 2023, "Towards Universal Fake Image Detectors that Generalize Across Generative
Models", arXiv:2302.10174, section 4.2 (linear classification of CLIP's features). Takes any vision
model of transformers; the paper's is CLIP ViT-L/14.
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

__all__ = ["Univfd"]


class Univfd(ImageDetector):
    """A frozen vision model with one linear output."""

    paper: ClassVar[str] = "arXiv:2302.10174"
    limitations: ClassVar[tuple[str, ...]] = (
        "It sees what the vision model was taught to see: small seams need not be among it.",
    )
    checkpoint: Reference = Field(description="a vision model: CLIP, SigLIP, DINOv2, ViT")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import VisionBackbone
        from stillroom.models.encoders.vision import load_vision

        return VisionBackbone(load_vision(Path(self.checkpoint)))

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import VisionBackbone
        from stillroom.models.encoders.vision import build_vision

        return VisionBackbone(build_vision(config))
