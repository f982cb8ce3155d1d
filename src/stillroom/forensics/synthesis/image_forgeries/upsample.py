"""Whole-image upsampling: spectral artifacts of a generator's transposed convolutions.

The picture is halved and brought back by putting zeros between its pixels and filtering them with a
kernel drawn by lot, as a transposed convolution of stride 2 does; what the kernel lets through of
the copies of the spectrum stays as a grid. Source: Durall et al. 2020, "Watch your Up-Convolution",
arXiv:2003.01826, section 3; Frank et al. 2020, arXiv:2003.08685. It is no generator: a detector of
it has learned one artefact of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ForgedImage, ImageForgery, SourceType

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face import Face

__all__ = ["Upsample"]


class Upsample(ImageForgery):
    """The grid of upsampling over a whole picture."""

    paper: ClassVar[str] = "arXiv:2003.01826"
    source_type: ClassVar[SourceType] = "algorithmicMedia"
    steps: int = Field(default=1, ge=1, le=3, description="how often the size is doubled")
    roughness: float = Field(
        default=0.15, ge=0, le=1, description="how far the kernel is from one that leaves no grid"
    )

    @override
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        import cv2
        import numpy as np

        from stillroom.forensics.media.transforms import to_uint8

        face = faces[0]
        height, width = face.image.shape[:2]
        share = 2**self.steps
        small = cv2.resize(
            face.image,
            (-(-width // share), -(-height // share)),
            interpolation=cv2.INTER_AREA,
        )
        grown = np.asarray(small, dtype=np.float32)
        smooth = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
        for _ in range(self.steps):
            rough = smooth * (1 + self.roughness * rng.uniform(-1, 1, smooth.shape))
            sparse = np.zeros((grown.shape[0] * 2, grown.shape[1] * 2, 3), dtype=np.float32)
            sparse[::2, ::2] = grown
            grown = np.asarray(
                cv2.filter2D(sparse, -1, rough / rough.sum() * 4, borderType=cv2.BORDER_REFLECT_101)
            )
        image = to_uint8(grown[:height, :width])
        mask = np.ones((height, width), dtype=np.float32)
        return ForgedImage(image, mask, face.image, {"steps": self.steps})
