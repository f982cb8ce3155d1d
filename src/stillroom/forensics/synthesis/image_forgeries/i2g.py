"""Inconsistent image generation (I2G): another face blended in through a deformed hull.

Source: Zhao et al. 2021, "Learning Self-Consistency for Deepfake Detection", arXiv:2012.09311,
section 3.2 (the inconsistency image generator): convex hull, elastic deformation, random blur,
matched colors, random blending factor.
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

__all__ = ["I2g"]


class I2g(ImageForgery):
    """Inconsistent patches from another face."""

    paper: ClassVar[str] = "arXiv:2012.09311"
    num_faces: ClassVar[int] = 2
    elastic: float = Field(default=60.0, ge=0, le=200, description="strength of mask deformation")
    min_ratio: float = Field(default=0.5, gt=0, le=1, description="minimum blending factor")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import numpy as np

        from stillroom.forensics.media.masks import HULL_KINDS, draw_hull, soften, warp_mask
        from stillroom.forensics.media.transforms import blend, transfer_color, warp_face

        target, source = faces[0], faces[1]
        shape = target.image.shape[0], target.image.shape[1]
        kind = HULL_KINDS[int(rng.integers(len(HULL_KINDS)))]
        hard = draw_hull(target.landmarks, shape, kind)
        if self.elastic:
            hard = warp_mask(hard, rng, alpha=self.elastic, sigma=8.0)
        ratio = float(rng.uniform(self.min_ratio, 1))
        mask = np.asarray(soften(hard, rng) * np.float32(ratio), dtype=np.float32)
        placed = warp_face(source, target, piecewise=False)
        recolored = transfer_color(placed, target.image, hard, "reinhard")
        details = {"source": source.name, "hull": kind, "ratio": round(ratio, 3)}
        return ForgedImage(blend(recolored, target.image, mask), mask, target.image, details)
