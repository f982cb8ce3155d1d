"""Landmark-based face swap: warping, color transfer, and blending onto the target.

The classical swap, without a network: the source's picture is brought onto the target's landmarks
triangle by triangle. ``resolution`` renders the face small first, as a generator of that size
would. Source: FaceSwap of FaceForensics++, Roessler et al. 2019, arXiv:1901.08971, section 3.1
(landmarks, blending, colour correction); here in two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BlendMode, ColorTransfer, ForgedImage, ImageForgery

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face import Face
    from stillroom.forensics.media.masks import HullKind

__all__ = ["Swap"]


class Swap(ImageForgery):
    """Swap of two faces by their landmarks."""

    paper: ClassVar[str] = "arXiv:1901.08971"
    faces_needed: ClassVar[int] = 2
    blending: BlendMode = Field(
        default="alpha", description="how the face is joined in: weights, gradients or bands"
    )
    colour: ColorTransfer = Field(
        default="reinhard",
        description="how its colours are matched: not at all, by means, by mean and spread in LAB, "
        "by optimal transport",
    )
    softness: float = Field(
        default=0.12, ge=0.01, le=0.5, description="rim of the mask, in face widths"
    )
    resolution: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="width in pixels that the picture is rendered at before it is joined in; 0 "
        "leaves it",
    )

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        from stillroom.forensics.media.masks import draw_hull, feather
        from stillroom.forensics.media.transforms import (
            composite,
            rescale,
            transfer_color,
            warp_face,
        )

        target, source = faces[0], faces[1]
        shape = target.image.shape[0], target.image.shape[1]
        kind: HullKind = "whole" if rng.random() < 0.5 else "inner"
        hard = draw_hull(target.landmarks, shape, kind)
        placed = warp_face(source, target)
        if self.resolution and self.resolution < shape[1]:
            placed = rescale(placed, self.resolution / shape[1])
        placed = transfer_color(placed, target.image, hard, self.colour)
        mask = feather(hard, self.softness)
        details = {"source": source.name, "hull": kind, "blending": self.blending}
        joined = composite(placed, target.image, mask, self.blending)
        return ForgedImage(joined, mask, target.image, details)
