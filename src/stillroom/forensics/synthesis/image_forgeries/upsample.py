"""Whole-image upsampling: spectral artifacts of a generator's transposed convolutions.

The image is downsampled, and upsampled by inserting zeros between its pixels and filtering them
with a random kernel, as a transposed convolution of stride 2 does; copies of the spectrum that pass
the kernel remain as a grid. It is not a generator: a detector trained on it knows one artifact of
theirs.

Source: Durall et al. 2020, "Watch your Up-Convolution", arXiv:2003.01826, section 3; Frank et al.
2020, arXiv:2003.08685.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ForgedImage, ImageForgery, SourceType

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.face_types import Face

__all__ = ["Upsample"]


class Upsample(ImageForgery):
    """Upsampling grid over a whole image."""

    paper: ClassVar[str] = "arXiv:2003.01826"
    source_type: ClassVar[SourceType] = "algorithmicMedia"
    steps: int = Field(default=1, ge=1, le=3, description="number of doublings")
    roughness: float = Field(
        default=0.15, ge=0, le=1, description="deviation of the kernel from one without a grid"
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
            face.image, (-(-width // share), -(-height // share)), interpolation=cv2.INTER_AREA
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
