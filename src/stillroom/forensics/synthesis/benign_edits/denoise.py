"""Denoising with non-local means.

Source: Buades et al. 2011, "Non-Local Means Denoising", IPOL 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BenignEdit

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face, Image

__all__ = ["Denoise"]


class Denoise(BenignEdit):
    """Non-local means with random strength."""

    paper: ClassVar[str] = "doi:10.5201/ipol.2011.bcm_nlm"
    max_strength: float = Field(default=8.0, gt=0, le=30, description="maximum filter strength")

    @override
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        import cv2
        import numpy as np

        strength = float(rng.uniform(1, max(self.max_strength, 1)))
        cleaned = cv2.fastNlMeansDenoisingColored(face.image, None, strength, strength, 5, 11)
        return np.asarray(cleaned, dtype=np.uint8)
