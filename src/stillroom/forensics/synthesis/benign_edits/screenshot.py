"""Screenshot: resizing to another scale and back without compression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BenignEdit

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face, Image

__all__ = ["Screenshot"]


class Screenshot(BenignEdit):
    """Resize by a random factor, as screens do, and back."""

    paper: ClassVar[str] = ""
    min_scale: float = Field(default=0.6, gt=0.1, le=1, description="minimum scale")
    max_scale: float = Field(default=1.6, ge=1, le=4, description="maximum scale")

    @override
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        from stillroom.forensics.media.transforms import rescale

        return rescale(face.image, float(rng.uniform(self.min_scale, self.max_scale)))
