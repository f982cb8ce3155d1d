"""Effort: a vision model tuned in the smallest singular values of its attention weights.

Source: Yan et al. 2024, "Orthogonal Subspace Decomposition for Generalizable AI-Generated Image
Detection" (Effort), arXiv:2411.15633, section 3.2 (singular value decomposition of each linear map
in attention, the principal part frozen) and 3.3 (orthogonality). Differs: the residual is computed
as a product of thin factors instead of forming the whole map again at each step.
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

__all__ = ["Effort"]


class Effort(ImageDetector):
    """A vision model trained in the smallest singular directions of its attention."""

    paper: ClassVar[str] = "arXiv:2411.15633"
    limitations: ClassVar[tuple[str, ...]] = (
        "It knows the traces of the forgeries it learned from, and no others.",
    )
    checkpoint: Reference = Field(description="a vision model: CLIP, SigLIP, DINOv2, ViT")
    rank: int = Field(default=1, ge=1, le=1024, description="trainable singular directions")
    orthogonality: float = Field(default=1.0, ge=0, description="weight of the orthonormality loss")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.models.encoders.vision import load_vision

        return self._tune(load_vision(Path(self.checkpoint)))

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        from stillroom.models.encoders.vision import build_vision

        return self._tune(build_vision(config))

    def _tune(self, vision: VisionModel) -> DetectorNetwork:
        from stillroom.forensics.networks.vision_backbone import VisionBackbone, decompose_attention

        tower = VisionBackbone(vision, orthogonality=self.orthogonality)
        decompose_attention(tower.tower, self.rank)
        return tower
