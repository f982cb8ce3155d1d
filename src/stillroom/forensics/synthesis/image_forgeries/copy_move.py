"""Copy-move forgery: a region pasted elsewhere in the same image.

Source: Fridrich et al. 2003, "Detection of Copy-Move Forgery in Digital Images" (the forgery that
it detects). The mask is the destination; the origin of the region is in the details.
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

__all__ = ["CopyMove"]


class CopyMove(ImageForgery):
    """Paste a region elsewhere in the same image."""

    paper: ClassVar[str] = "Fridrich et al. 2003, DFRWS"
    min_size: float = Field(default=0.12, gt=0, le=0.5, description="minimum width, as a share")
    max_size: float = Field(default=0.3, gt=0, le=0.5, description="maximum width, as a share")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import numpy as np

        from stillroom.forensics.media.masks import draw_patch
        from stillroom.forensics.media.transforms import blend, find_mask_box

        face = faces[0]
        height, width = face.image.shape[:2]
        mask = draw_patch((height, width), rng, self.min_size, self.max_size)
        x, y, wide, high = find_mask_box(mask)
        # Offset by at least its own size, so that the region does not overlap itself.
        room = [
            (down, right)
            for down in range(-y, height - y - high, 4)
            for right in range(-x, width - x - wide, 4)
            if abs(down) >= high or abs(right) >= wide
        ]
        down, right = room[int(rng.integers(len(room)))] if room else (high, wide)
        moved = np.roll(face.image, (-down, -right), axis=(0, 1))
        details = {"from": [x + right, y + down, wide, high]}
        return ForgedImage(blend(moved, face.image, mask), mask, face.image, details)
