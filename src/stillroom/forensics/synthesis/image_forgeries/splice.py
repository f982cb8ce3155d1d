"""Splicing: a region of another image pasted in with a soft edge.

Source: Dong et al. 2013, "CASIA Image Tampering Detection Evaluation Database" (the kind of
tampering; shapes and positions are random here).
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

__all__ = ["Splice"]


class Splice(ImageForgery):
    """Paste a region of another image."""

    paper: ClassVar[str] = "doi:10.1109/ChinaSIP.2013.6625374"
    num_faces: ClassVar[int] = 2
    min_size: float = Field(default=0.15, gt=0, le=0.8, description="minimum width, as a share")
    max_size: float = Field(default=0.4, gt=0, le=0.8, description="maximum width, as a share")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        from stillroom.forensics.media.masks import draw_patch
        from stillroom.forensics.media.transforms import blend, fit_size

        target, source = faces[0], faces[1]
        height, width = target.image.shape[:2]
        mask = draw_patch((height, width), rng, self.min_size, self.max_size)
        image = blend(fit_size(source.image, (height, width)), target.image, mask)
        return ForgedImage(image, mask, target.image, {"source": source.name})
