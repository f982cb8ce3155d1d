"""Inpainting: a region removed and filled from its surroundings.

Source: Telea 2004, "An Image Inpainting Technique Based on the Fast Marching Method"; Bertalmio et
al. 2001, "Navier-Stokes, fluid dynamics, and image and video inpainting" (OpenCV's two algorithms).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ForgedImage, ImageForgery

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face

__all__ = ["Inpaint"]


class Inpaint(ImageForgery):
    """Remove a region and fill it from its surroundings."""

    paper: ClassVar[str] = "doi:10.1080/10867651.2004.10487596"
    algorithm: Literal["telea", "navier-stokes"] = Field(default="telea", description="algorithm")
    min_size: float = Field(default=0.08, gt=0, le=0.5, description="minimum width, as a share")
    max_size: float = Field(default=0.25, gt=0, le=0.5, description="maximum width, as a share")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import cv2
        import numpy as np

        from stillroom.forensics.media.masks import draw_patch

        face = faces[0]
        shape = face.image.shape[0], face.image.shape[1]
        mask = (draw_patch(shape, rng, self.min_size, self.max_size) > 0.5).astype(np.float32)
        flag = cv2.INPAINT_TELEA if self.algorithm == "telea" else cv2.INPAINT_NS
        filled = cv2.inpaint(face.image, mask.astype(np.uint8) * 255, 3.0, flag)
        return ForgedImage(
            np.asarray(filled, dtype=np.uint8), mask, face.image, {"way": self.algorithm}
        )
