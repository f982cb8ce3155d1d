"""Face X-ray blending: another face's deformed inner region in the target's colors.

Source: Li et al. 2020, "Face X-ray for More General Face Forgery Detection", arXiv:1912.13458. The
boundary that its detector is trained on is 4 M (1 - M) of the returned mask. Differs: the source is
the given face, not the nearest of thousands; colors are matched by their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ForgedImage, ImageForgery

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face

__all__ = ["FaceXray"]


class FaceXray(ImageForgery):
    """Blend another face with a soft boundary."""

    paper: ClassVar[str] = "arXiv:1912.13458"
    num_faces: ClassVar[int] = 2
    elastic: float = Field(default=40.0, ge=0, le=200, description="strength of mask deformation")
    erode: int = Field(default=11, ge=1, le=41, description="maximum mask erosion, in pixels")
    softness: float = Field(default=0.2, ge=0.01, le=0.5, description="mask rim, in face widths")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import cv2
        import numpy as np

        from stillroom.forensics.media.masks import draw_hull, feather, warp_mask
        from stillroom.forensics.media.transforms import blend, transfer_color, warp_face

        target, source = faces[0], faces[1]
        shape = target.image.shape[0], target.image.shape[1]
        placed = warp_face(source, target, piecewise=False)
        mask = draw_hull(target.landmarks, shape, "inner")
        if self.elastic:
            mask = warp_mask(mask, rng, alpha=self.elastic, sigma=7.0)
        size = int(rng.integers(1, self.erode + 1))
        mask = np.asarray(cv2.erode(mask, np.ones((size, size), np.uint8)), dtype=np.float32)
        mask = feather(mask, self.softness)
        recolored = transfer_color(placed, target.image, mask, "mean")
        details = {"source": source.name, "eroded": size}
        return ForgedImage(blend(recolored, target.image, mask), mask, target.image, details)
