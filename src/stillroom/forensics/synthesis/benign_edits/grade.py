"""Color grading: changes of brightness, contrast, hue, and saturation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BenignEdit

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face, Image

__all__ = ["Grade"]


class Grade(BenignEdit):
    """Random color changes."""

    paper: ClassVar[str] = ""
    strength: float = Field(default=1.5, gt=0, le=3, description="strength of the color change")

    @override
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        from stillroom.forensics.media.transforms import jitter_color

        return jitter_color(face.image, rng, strength=self.strength)
