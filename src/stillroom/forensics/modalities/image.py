"""Images of a detector: augmentation (crop, flip, JPEG, color), perturbations and features.

All randomness comes from the generator passed in. Both images of a pair share each draw, so that
they differ in the forgery only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ForgedImage, ImageDetector
from stillroom.forensics.media.face_types import Image, Mask
from stillroom.forensics.media.transforms import compress_jpeg, fit_size, jitter_color, rescale
from stillroom.forensics.media.video import apply_video_codec
from stillroom.forensics.modalities.interfaces import Floats, Modality, Perturbation
from stillroom.forensics.settings import ImageAugmentation

__all__ = [
    "AugmentedPair",
    "ImageModality",
    "augment_pair",
    "center_window",
    "compress_h264",
    "cut_window",
    "is_grayscale",
    "make_image_perturbation",
    "measure_image",
    "to_channels_first",
]

Window = tuple[int, int, int]
ReadPixels = Annotated[int, Field(ge=1, le=2**14)]
Pixels = TypeVar("Pixels", Image, Mask)


@dataclass(frozen=True, eq=False)
class AugmentedPair:
    """A fake, its real twin and the forgery mask: (P, P, 3), (P, P, 3), (P, P)."""

    fake: Image
    real: Image
    mask: Mask


def augment_pair(
    forged: ForgedImage,
    settings: ImageAugmentation,
    pixels: int,
    rng: np.random.Generator,
    *,
    preserve_pixels: bool,
) -> AugmentedPair:
    """Augment a pair for detector training.

    Args:
        forged: The pair, (S, S, 3).
        settings: Augmentation settings.
        pixels: Width and height of the output.
        rng: Source of all randomness.
        preserve_pixels: Crop at the native resolution instead of resizing.
    """
    side = forged.image.shape[0]
    share, across, down = rng.random(3)
    size = min(pixels, side) if preserve_pixels else round(side * (1 - settings.max_crop * share))
    room = side - size
    if preserve_pixels:  # centered, within the share that may be cropped away
        room = min(room, round(side * settings.max_crop))
    start = (side - size - room) // 2
    window = start + round(room * down), start + round(room * across), size
    flips = settings.flip and bool(rng.random() < 0.5)
    codes = settings.jpeg_probability > 0
    quality = int(rng.integers(settings.min_jpeg_quality, 101)) if codes else 100
    compresses = bool(rng.random() < settings.jpeg_probability)
    seed = int(rng.integers(2**63))

    def show(image: Image) -> Image:
        if settings.color_jitter:
            image = jitter_color(image, np.random.default_rng(seed), strength=settings.color_jitter)
        image = cut_window(image, window, pixels)
        image = np.ascontiguousarray(image[:, ::-1]) if flips else image
        return compress_jpeg(image, quality) if compresses else image

    mask = cut_window(forged.mask, window, pixels)
    return AugmentedPair(show(forged.image), show(forged.twin), mask[:, ::-1] if flips else mask)


def center_window(side: int, pixels: int, *, preserve_pixels: bool) -> Window:
    """Return top, left and side of the centered window used without augmentation."""
    size = min(pixels, side) if preserve_pixels else round(side * 0.94)
    return (side - size) // 2, (side - size) // 2, size


def cut_window(image: Pixels, window: Window, pixels: int) -> Pixels:
    """Crop a window of an image or mask, resized unless it is ``pixels`` wide."""
    top, left, size = window
    cut = np.ascontiguousarray(image[top : top + size, left : left + size])
    if size == pixels:
        return cut
    method = cv2.INTER_AREA if size > pixels else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (pixels, pixels), interpolation=method), dtype=image.dtype)


def to_channels_first(images: list[Image]) -> npt.NDArray[np.float32]:
    """Convert 8-bit images (P, P, 3) to channels first, (N, 3, P, P) in [0, 1]."""
    stacked = np.stack(images).astype(np.float32) / 255.0
    return np.ascontiguousarray(np.moveaxis(stacked, -1, -3))


def _noisy(image: Image) -> Image:
    rng = np.random.default_rng(int(image.sum(dtype=np.int64)))
    noisy = image + rng.normal(0, 8, image.shape)
    return np.asarray(np.clip(np.rint(noisy), 0, 255), dtype=np.uint8)


def compress_h264(image: Image) -> Image:
    """Encode as H.264 at a bit rate of social networks."""
    return apply_video_codec([image], 28)[0]


def _blurred(image: Image) -> Image:
    share = image.shape[0] / 224  # sigma 1.5 for faces of 224 pixels
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(1.5 * share, 0.3)), dtype=np.uint8)


_CONDITIONS: Mapping[str, Callable[[Image], Image]] = {
    "clean": lambda image: image,
    "jpeg70": lambda image: compress_jpeg(image, 70),
    "jpeg40": lambda image: compress_jpeg(image, 40),
    "half": lambda image: rescale(image, 0.5),
    "noise8": _noisy,
    "blur": _blurred,
    "h264": compress_h264,
}


def make_image_perturbation(least_quality: int, least_share: float) -> Perturbation:
    """Return a random perturbation: JPEG or downscaling, within bounds."""

    def change(image: Image, rng: np.random.Generator) -> Image:
        is_saved, position = bool(rng.random() < 0.5), float(rng.random())
        quality = round(least_quality + (100 - least_quality) * position)
        share = least_share + (1 - least_share) * position

        return compress_jpeg(image, quality) if is_saved else rescale(image, share)

    return change


Plane = npt.NDArray[np.float32]
_SCALES = 5

_FEATURES = (
    "brightness",
    "contrast",
    "its red against green",
    "its blue against yellow",
    "colorfulness",
    *(f"detail at a scale of {2**at}" for at in range(_SCALES)),
    "fine detail of color",
    "blown highlights",
    "black shadows",
)


def measure_image(image: Image) -> Floats:
    """Measure ``features`` of an image (H, W, 3), (L,)."""
    planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), dtype=np.float32)
    luma, red, blue = planes[..., 0], planes[..., 1] - 128, planes[..., 2] - 128
    values = [luma.mean() / 255, luma.std() / 255, red.mean() / 255, blue.mean() / 255]
    values.append(_log(np.hypot(red, blue).mean()))
    level = luma
    for _ in range(_SCALES):
        smaller = _reduce(level)
        values.append(_log((level - _enlarge(smaller, level)).std()))
        level = smaller
    values.append(_log((red - _enlarge(_reduce(red), red)).std()))
    values += [(luma > 250).mean(), (luma < 5).mean()]
    return np.array(values, dtype=np.float64)


def is_grayscale(image: Image) -> bool:
    """Return whether an image, (..., 3), has no color beyond rounding errors."""
    gaps = image.max(axis=-1).astype(np.int16) - image.min(axis=-1)
    return bool(gaps.mean() < 1)


def _reduce(level: Plane) -> Plane:
    return np.asarray(cv2.pyrDown(level), dtype=np.float32)


def _enlarge(small: Plane, like: Plane) -> Plane:
    return np.asarray(cv2.pyrUp(small, dstsize=(like.shape[1], like.shape[0])), dtype=np.float32)


def _log(value: float) -> float:
    return float(np.log(value + 0.25))  # a quarter of an 8-bit level: below is rounding


@dataclass(frozen=True)
class ImageModality(Modality):
    """Input of an image detector: a square crop of a face, read at ``image_size`` pixels.

    ``face_size`` is the side of the crop in training, ``face_margin`` that side relative to the
    landmarks' box. ``min_face_size`` (crop side in pixels) and ``min_jpeg_quality`` bound the
    validated conditions.
    """

    image_size: ReadPixels
    face_size: ReadPixels
    face_margin: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    preserve_pixels: bool = False
    min_face_size: Annotated[int, Field(ge=0, le=2**16)] = 0
    min_jpeg_quality: Annotated[int, Field(ge=0, le=100)] = 0

    name: ClassVar[Literal["image", "audio"]] = "image"
    subject: ClassVar[str] = "faces"
    detail_unit: ClassVar[str] = "px about a face"
    batch_size: ClassVar[int] = 32
    features: ClassVar[tuple[str, ...]] = _FEATURES
    conditions: ClassVar[Mapping[str, Callable[[Any], Any]]] = _CONDITIONS

    @classmethod
    def of(
        cls, method: ImageDetector, image_size: int, face_size: int, face_margin: float
    ) -> ImageModality:
        """Return the input of a detector method."""
        return cls(image_size, face_size, face_margin, method.preserve_pixels)

    @property
    @override
    def input_size(self) -> int:
        return self.image_size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input of the network, (3, P, P)."""
        return 3, self.image_size, self.image_size

    def crop(self, image: Image) -> Image:
        """Crop a square around a face to the network's input, (P, P, 3)."""
        side = self.face_size
        window = center_window(side, self.image_size, preserve_pixels=self.preserve_pixels)
        return cut_window(fit_size(image, (side, side)), window, self.image_size)

    @override
    def prepare(self, samples: Sequence[Image]) -> npt.NDArray[np.float32]:
        return to_channels_first(
            [self.crop(np.asarray(sample, dtype=np.uint8)) for sample in samples]
        )

    @override
    def measure(self, sample: Image) -> Floats:
        side = self.face_size
        return measure_image(fit_size(np.asarray(sample, dtype=np.uint8), (side, side)))

    @override
    def limits(self) -> str:
        return (
            f"; validated down to face crops of {self.min_face_size} pixels and JPEG "
            f"{self.min_jpeg_quality}"
        )

    def doubts(self, face_size: float, jpeg_quality: int | None) -> list[str]:
        """Return reasons why a face is outside of the validated conditions.

        Args:
            face_size: Side of the crop in source pixels.
            jpeg_quality: JPEG quality of the image, None for other formats.
        """
        doubts = []
        if face_size < self.min_face_size:
            doubts.append(
                f"face of {face_size / self.face_margin:.0f} px, below the "
                f"{self.min_face_size / self.face_margin:.0f} px it was validated for"
            )
        if jpeg_quality is not None and jpeg_quality < self.min_jpeg_quality:
            doubts.append(
                f"JPEG quality {jpeg_quality}, below the {self.min_jpeg_quality} it was "
                "validated for"
            )
        return doubts
