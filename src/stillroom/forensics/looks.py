"""What can be measured of any picture or sound without a network: tone, colour, detail by scale.

It is not meant to tell forged from real: by it a detector knows what is unlike all it learned from.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.face import Image
from stillroom.forensics.waves import RATE, Waves, mel_bands, to_spectrum

__all__ = ["PICTURE_LOOKS", "SOUND_LOOKS", "band_of", "is_grey", "measure_picture", "measure_sound"]

Floats = npt.NDArray[np.float64]
Plane = npt.NDArray[np.float32]
_SCALES = 5
_BANDS, _LENGTH, _HOP = 12, 512, 256
_CLIP = 4  # dimensions of a clip, (T, H, W, 3)
_LEAST = 1e-6
_ENERGY = 0.999

PICTURE_LOOKS = (
    "brightness",
    "contrast",
    "its red against green",
    "its blue against yellow",
    "colourfulness",
    *(f"detail at a scale of {2**at}" for at in range(_SCALES)),
    "fine detail of colour",
    "blown highlights",
    "black shadows",
)
SOUND_LOOKS = (
    *(f"energy of band {at + 1} of {_BANDS}" for at in range(_BANDS)),
    *(f"changes of band {at + 1} of {_BANDS}" for at in range(_BANDS)),
    "loudness",
)


def measure_picture(image: Image) -> Floats:
    """Return what ``PICTURE_LOOKS`` names of a picture, (H, W, 3), or a clip's mean, (L,)."""
    if image.ndim == _CLIP:
        return np.asarray(np.mean([measure_picture(frame) for frame in image], axis=0))
    planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), dtype=np.float32)
    luma, red, blue = planes[..., 0], planes[..., 1] - 128, planes[..., 2] - 128
    found = [luma.mean() / 255, luma.std() / 255, red.mean() / 255, blue.mean() / 255]
    found.append(_log(np.hypot(red, blue).mean()))
    level = luma
    for _ in range(_SCALES):
        smaller = _reduce(level)
        found.append(_log((level - _enlarge(smaller, level)).std()))
        level = smaller
    found.append(_log((red - _enlarge(_reduce(red), red)).std()))
    found += [(luma > 250).mean(), (luma < 5).mean()]
    return np.array(found, dtype=np.float64)


def measure_sound(values: Waves) -> Floats:
    """Return what ``SOUND_LOOKS`` names of a sound (N,) at ``waves.RATE``, (L,)."""
    power = np.abs(to_spectrum(values, _LENGTH, _HOP)) ** 2  # (T, bins)
    energy = np.log10(power @ mel_bands(_BANDS, _LENGTH).T + _LEAST)  # (T, bands)
    level = np.log10(float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) + _LEAST)
    return np.array([*energy.mean(axis=0), *energy.std(axis=0), level], dtype=np.float64)


def is_grey(image: Image) -> bool:
    """Return whether a picture or clip, (..., 3), has no colour but what rounding leaves."""
    gaps = image.max(axis=-1).astype(np.int16) - image.min(axis=-1)
    return bool(gaps.mean() < 1)


def band_of(values: Waves) -> float:
    """Return the frequency in Hz below which 99.9 % of a sound's energy lies."""
    power = np.square(np.abs(np.fft.rfft(values.astype(np.float64))))
    whole = float(power.sum())
    if whole <= 0:
        return 0.0
    place = int(np.argmax(np.cumsum(power) >= _ENERGY * whole))
    return place * RATE / len(values)


def _reduce(level: Plane) -> Plane:
    return np.asarray(cv2.pyrDown(level), dtype=np.float32)


def _enlarge(small: Plane, like: Plane) -> Plane:
    return np.asarray(cv2.pyrUp(small, dstsize=(like.shape[1], like.shape[0])), dtype=np.float32)


def _log(value: float) -> float:
    return float(np.log(value + 0.25))  # a quarter of a step of 8 bits: below is rounding
