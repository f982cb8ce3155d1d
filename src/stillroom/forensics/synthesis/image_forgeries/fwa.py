"""Face warping artifacts: a face downsampled, warped, blurred, and pasted back.

Source: Li and Lyu 2019, "Exposing DeepFake Videos By Detecting Face Warping Artifacts",
arXiv:1811.00656, section 3.2.
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
    from stillroom.forensics.media.masks import HullKind

__all__ = ["Fwa"]


class Fwa(ImageForgery):
    """Mismatch of resolution left by pasting a generated face."""

    paper: ClassVar[str] = "arXiv:1811.00656"
    min_scale: float = Field(
        default=0.25, ge=0.05, le=1, description="minimum resolution of the face, as a share"
    )
    max_blur: float = Field(default=1.5, ge=0.1, le=8, description="maximum blur, in pixels")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import cv2
        import numpy as np

        from stillroom.forensics.media.masks import draw_hull, feather
        from stillroom.forensics.media.transforms import blend, rescale

        face = faces[0]
        share = float(rng.uniform(self.min_scale, max(self.min_scale, 0.75)))
        low = rescale(face.image, share)
        sigma = float(rng.uniform(0.1, self.max_blur))
        low = np.asarray(cv2.GaussianBlur(low, (0, 0), sigma), dtype=np.uint8)
        kind: HullKind = "whole" if rng.random() < 0.5 else "inner"
        mask = feather(
            draw_hull(face.landmarks, (face.image.shape[0], face.image.shape[1]), kind), 0.05
        )
        details = {"share": round(share, 3), "blur": round(sigma, 3), "hull": kind}
        return ForgedImage(blend(low, face.image, mask), mask, face.image, details)
