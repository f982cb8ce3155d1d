"""Graded: brightness, contrast, hue and saturation moved, as every photo application does."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.method import Edit

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.face import Face, Image

__all__ = ["Grade"]


class Grade(Edit):
    """Colours moved by lot."""

    paper: ClassVar[str] = ""
    strength: float = Field(default=1.5, gt=0, le=3, description="how far colours are moved")

    @override
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        from stillroom.forensics.treatments import jitter_colour

        return jitter_colour(face.image, rng, strength=self.strength)
