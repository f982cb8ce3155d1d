"""JPEG recompression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BenignEdit

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face, Image

__all__ = ["Recompress"]


class Recompress(BenignEdit):
    """JPEG at a random quality."""

    paper: ClassVar[str] = ""
    min_quality: int = Field(default=50, ge=5, le=100, description="minimum quality")
    max_quality: int = Field(default=95, ge=5, le=100, description="maximum quality")

    @override
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        from stillroom.forensics.media.transforms import compress_jpeg

        low, high = sorted((self.min_quality, self.max_quality))
        return compress_jpeg(face.image, int(rng.integers(low, high + 1)))
