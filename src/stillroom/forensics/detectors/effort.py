"""Residuals of attention alone are tuned: large singular values stay, the smallest learn.

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

from stillroom.forensics.method import Detector
from stillroom.recipes import Reference

if TYPE_CHECKING:
    from stillroom.forensics.networks import Network
    from stillroom.models.vision import Vision

__all__ = ["Effort"]


class Effort(Detector):
    """A vision model whose attention learns in its smallest singular directions."""

    paper: ClassVar[str] = "arXiv:2411.15633"
    blind: ClassVar[tuple[str, ...]] = (
        "It knows the traces of the forgeries it learned from, and no others.",
    )
    checkpoint: Reference = Field(description="a vision model: CLIP, SigLIP, DINOv2, ViT")
    rank: int = Field(default=1, ge=1, le=1024, description="singular directions that learn")
    orthogonality: float = Field(
        default=1.0, ge=0, description="weight of what keeps those directions orthonormal"
    )

    @override
    def build(self, pixels: int) -> Network:
        from stillroom.models.vision import load_vision

        return self._tune(load_vision(Path(self.checkpoint)))

    @override
    def rebuild(self, pixels: int, kept: Mapping[str, Any]) -> Network:
        from stillroom.models.vision import build_vision

        return self._tune(build_vision(kept))

    def _tune(self, vision: Vision) -> Network:
        from stillroom.forensics.towers import Tower, split_attention

        tower = Tower(vision, orthogonality=self.orthogonality)
        split_attention(tower.tower, self.rank)
        return tower
