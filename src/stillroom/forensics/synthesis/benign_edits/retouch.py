"""Skin retouching: smoothing and brightening outside of eyes and mouth."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BenignEdit

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face, Image

__all__ = ["Retouch"]


class Retouch(BenignEdit):
    """Beauty filter: smooth and brighten the skin."""

    paper: ClassVar[str] = ""
    strength: float = Field(default=0.7, gt=0, le=1, description="weight of the smoothed skin")

    @override
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        import cv2
        import numpy as np

        from stillroom.forensics.media.face_types import PARTS
        from stillroom.forensics.media.masks import draw_hull
        from stillroom.forensics.media.transforms import blend, to_uint8

        shape = face.image.shape[0], face.image.shape[1]
        smooth = cv2.bilateralFilter(face.image, 7, float(rng.uniform(15, 45)), 5)
        bright = to_uint8(np.asarray(smooth, dtype=np.float32) * float(rng.uniform(1.0, 1.06)))
        skin = draw_hull(face.landmarks, shape, "whole")
        for part in ("eye_left", "eye_right", "mouth"):
            hole = cv2.convexHull(face.landmarks[PARTS[part]])
            cv2.fillConvexPoly(skin, np.rint(hole).astype(np.int32), 0.0)
        soft = np.asarray(cv2.GaussianBlur(skin, (0, 0), 3), dtype=np.float32)
        return blend(bright, face.image, np.asarray(soft * np.float32(self.strength)))
