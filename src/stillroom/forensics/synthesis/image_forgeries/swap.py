"""Landmark-based face swap: warping, color transfer, and blending onto the target.

The classical swap, without a network: the source is warped to the target's landmarks triangle by
triangle. ``resolution`` first renders the face at a small size, as a generator of that size would.

Source: FaceSwap of FaceForensics++, Roessler et al. 2019, arXiv:1901.08971, section 3.1 (landmarks,
blending, color correction); here in two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BlendMode, ColorTransfer, ForgedImage, ImageForgery

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face
    from stillroom.forensics.media.masks import HullKind

__all__ = ["Swap"]


class Swap(ImageForgery):
    """Swap two faces by their landmarks."""

    paper: ClassVar[str] = "arXiv:1901.08971"
    num_faces: ClassVar[int] = 2
    blending: BlendMode = Field(
        default="alpha", description="blending by weights, gradients or bands"
    )
    color_transfer: ColorTransfer = Field(
        default="reinhard",
        description="color matching: none, means, mean and standard deviation in LAB, or optimal "
        "transport",
    )
    softness: float = Field(default=0.12, ge=0.01, le=0.5, description="mask rim, in face widths")
    resolution: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="width in pixels at which the face is rendered before blending; 0 keeps its "
        "size",
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
        placed = transfer_color(placed, target.image, hard, self.color_transfer)
        mask = feather(hard, self.softness)
        details = {"source": source.name, "hull": kind, "blending": self.blending}
        joined = composite(placed, target.image, mask, self.blending)
        return ForgedImage(joined, mask, target.image, details)
