"""Self-blended images (SBI): a face blended with a slightly transformed copy of itself.

Source: Shiohara and Yamasaki 2022, "Detecting Deepfakes with Self-Blended Images",
arXiv:2204.08376. Differs from its code: hue shifts are some degrees (its units make them almost
nothing), a mask is never empty, and all randomness comes from one generator.
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

__all__ = ["Sbi"]

_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


class Sbi(ImageForgery):
    """Self-blended images."""

    paper: ClassVar[str] = "arXiv:2204.08376"
    shift: float = Field(
        default=0.03, ge=0, le=0.2, description="maximum shift of the source, in widths"
    )
    scale: float = Field(default=0.05, ge=0, le=0.5, description="maximum rescaling of the source")
    elastic: float = Field(
        default=50.0, ge=0, le=200, description="strength of mask deformation, 0 for none"
    )
    color_jitter: float = Field(default=1.0, ge=0, le=3, description="strength of the color jitter")

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import numpy as np

        from stillroom.forensics.media.masks import HULL_KINDS, draw_hull, soften, warp_mask
        from stillroom.forensics.media.transforms import (
            blend,
            jitter_color,
            jitter_detail,
            warp_affine,
        )

        face = faces[0]
        height, width = face.image.shape[:2]
        kind = HULL_KINDS[int(rng.integers(len(HULL_KINDS)))]
        mask = draw_hull(face.landmarks, (height, width), kind)
        source, target = face.image, face.image
        changes_source = bool(rng.random() < 0.5)
        changed = jitter_detail(jitter_color(face.image, rng, strength=self.color_jitter), rng)
        if changes_source:
            source = changed
        else:
            target = changed
        grown = 1 - self.scale
        zoom = float(rng.uniform(grown, 1 / grown))
        move = rng.uniform(-1, 1, 2) * np.array([self.shift * width, self.shift / 2 * height])
        middle = np.array([width / 2, height / 2])
        offset = middle - zoom * middle + move
        matrix = np.array([[zoom, 0, offset[0]], [0, zoom, offset[1]]])
        source = warp_affine(source, matrix).astype(np.uint8)
        mask = warp_affine(mask, matrix).astype(np.float32)
        if self.elastic:
            mask = warp_mask(mask, rng, alpha=self.elastic, sigma=7.0)
        ratio = _RATIOS[int(rng.integers(len(_RATIOS)))]
        mask = soften(mask, rng) * np.float32(ratio)
        details = {
            "hull": kind,
            "ratio": ratio,
            "changed": "source" if changes_source else "target",
        }
        return ForgedImage(blend(source, target, mask), mask, target, details)
