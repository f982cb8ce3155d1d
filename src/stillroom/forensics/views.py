"""What a detector sees of a face: the window, and what real face and fake go through alike.

All chance comes from the generator that is handed in; the same draw serves both of a pair, so that
nothing but the forgery tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.detector_settings import ViewSettings
from stillroom.forensics.face import Image, Mask
from stillroom.forensics.method import Forged
from stillroom.forensics.treatments import compress, jitter_colour
from stillroom.forensics.video_coding import code_frames

__all__ = ["View", "cut_window", "draw_clip_view", "draw_view", "middle_window", "to_planes"]

Window = tuple[int, int, int]
Pixels = TypeVar("Pixels", Image, Mask)


@dataclass(frozen=True, eq=False)
class View:
    """A fake, its real twin and where it is forged, (P, P, 3), (P, P, 3), (P, P)."""

    fake: Image
    real: Image
    mask: Mask


def draw_view(
    forged: Forged,
    settings: ViewSettings,
    pixels: int,
    rng: np.random.Generator,
    *,
    keeps_pixels: bool,
) -> View:
    """Return a pair as the detector learns from it.

    Args:
        forged: The pair, (S, S, 3).
        settings: What may happen to it.
        pixels: Width and height of the view.
        rng: Of everything that is drawn.
        keeps_pixels: Cut the view out at its own resolution instead of resizing.
    """
    side = forged.image.shape[0]
    window = _draw_window(side, pixels, settings.crop, rng, keeps_pixels=keeps_pixels)
    flips = settings.flip and bool(rng.random() < 0.5)
    quality = int(rng.integers(settings.least_quality, 101)) if settings.jpeg else 100
    compresses = bool(rng.random() < settings.jpeg)
    seed = int(rng.integers(2**63))

    def show(image: Image) -> Image:
        if settings.colour:
            image = jitter_colour(image, np.random.default_rng(seed), strength=settings.colour)
        image = cut_window(image, window, pixels)
        image = np.ascontiguousarray(image[:, ::-1]) if flips else image
        return compress(image, quality) if compresses else image

    mask = cut_window(forged.mask, window, pixels)
    return View(show(forged.image), show(forged.twin), mask[:, ::-1] if flips else mask)


def middle_window(side: int, pixels: int, *, keeps_pixels: bool) -> Window:
    """Return top, left and side of the window that is looked at when nothing is drawn by lot."""
    size = min(pixels, side) if keeps_pixels else round(side * 0.94)
    return (side - size) // 2, (side - size) // 2, size


def cut_window(image: Pixels, window: Window, pixels: int) -> Pixels:
    """Return a window of a picture or mask, resized where it is not ``pixels`` wide already."""
    top, left, size = window
    cut = np.ascontiguousarray(image[top : top + size, left : left + size])
    if size == pixels:
        return cut
    method = cv2.INTER_AREA if size > pixels else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (pixels, pixels), interpolation=method), dtype=image.dtype)


def to_planes(images: list[Image]) -> npt.NDArray[np.float32]:
    """Return pictures (P, P, 3) or clips (T, P, P, 3) in 8 bits as planes in [0, 1].

    Pictures become (N, 3, P, P), clips (N, T, 3, P, P).
    """
    stacked = np.stack(images).astype(np.float32) / 255.0
    return np.ascontiguousarray(np.moveaxis(stacked, -1, -3))


def draw_clip_view(
    forged: Sequence[Forged],
    settings: ViewSettings,
    pixels: int,
    rng: np.random.Generator,
    *,
    keeps_pixels: bool,
) -> View:
    """Return a pair of clips, (T, P, P, 3) and masks (T, P, P): one draw serves all frames.

    Half of them go through H.264, fake and real twin alike.
    """
    lot = int(rng.integers(2**63))
    plain = settings.model_copy(update={"jpeg": 0.0})
    views = [
        draw_view(one, plain, pixels, np.random.default_rng(lot), keeps_pixels=keeps_pixels)
        for one in forged
    ]
    fakes, reals = [view.fake for view in views], [view.real for view in views]
    if rng.random() < settings.jpeg:
        crf = int(rng.integers(18, 36))
        fakes, reals = code_frames(fakes, crf), code_frames(reals, crf)
    return View(np.stack(fakes), np.stack(reals), np.stack([view.mask for view in views]))


def _draw_window(
    side: int, pixels: int, crop: float, rng: np.random.Generator, *, keeps_pixels: bool
) -> Window:
    share, across, down = rng.random(3)
    size = min(pixels, side) if keeps_pixels else round(side * (1 - crop * share))
    room = side - size
    if keeps_pixels:  # about the middle, within the share that may be cut off
        room = min(room, round(side * crop))
    start = (side - size - room) // 2
    return start + round(room * down), start + round(room * across), size
