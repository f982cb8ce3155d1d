"""What a detector is shown to work on: figures on faces it never saw, and how far down they hold.

Every figure is an area under the curve with an interval over people. What is done to pictures is
done to real and forged alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from stillroom.evaluate import Metric
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.face import Face, Image, Mask
from stillroom.forensics.measures import area_under_curve, cluster_interval
from stillroom.forensics.method import Forgery
from stillroom.forensics.pairs import forge_clip, forge_pair
from stillroom.forensics.treatments import compress, rescale
from stillroom.forensics.video_coding import code_frames

__all__ = ["CONDITIONS", "Trial", "apply_change", "find_bounds", "make_trial", "measure_conditions"]

_QUALITIES = (90, 70, 50, 40, 30, 20)
_SHARES = (0.75, 0.5, 0.375, 0.25)
_CLIP = 4  # dimensions of a clip, (T, H, W, 3)
_KEPT = 0.7  # of what a detector has above chance; with less left it counts as blind


def _noisy(image: Image) -> Image:
    rng = np.random.default_rng(int(image.sum(dtype=np.int64)))
    noisy = image + rng.normal(0, 8, image.shape)
    return np.asarray(np.clip(np.rint(noisy), 0, 255), dtype=np.uint8)


def _coded(image: Image) -> Image:
    """A frame of H.264 as networks send it; a clip is coded whole."""
    frames = list(image) if image.ndim == _CLIP else [image]
    coded = code_frames(frames, 28)
    return np.stack(coded) if image.ndim == _CLIP else coded[0]


def _blurred(image: Image) -> Image:
    share = image.shape[0] / 224  # a sigma of 1.5 on faces of 224 pixels
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(1.5 * share, 0.3)), dtype=np.uint8)


CONDITIONS: Mapping[str, Callable[[Image], Image]] = {
    "clean": lambda image: image,
    "jpeg70": lambda image: compress(image, 70),
    "jpeg40": lambda image: compress(image, 40),
    "half": lambda image: rescale(image, 0.5),
    "noise8": _noisy,
    "blur": _blurred,
    "h264": _coded,
}


@dataclass(frozen=True, eq=False)
class Trial:
    """Pictures with labels, where they are forged, and whose faces they show; fakes first."""

    images: tuple[Image, ...]
    labels: tuple[int, ...]
    masks: tuple[Mask, ...]
    groups: tuple[str, ...]

    def measure(
        self, detector: TrainedDetector, change: Callable[[Image], Image], name: str
    ) -> Metric:
        """Return the area under the curve after a change to every picture."""
        scores = detector.logits([apply_change(change, image) for image in self.images])
        return cluster_interval(self.labels, scores, self.groups, name=name)


def make_trial(
    faces: Sequence[Face],
    forgeries: Sequence[Forgery],
    *,
    seed: int,
    repeats: int = 1,
    frames: int = 1,
) -> Trial:
    """Forge some faces, always the same way, and return them with their real twins.

    Args:
        faces: All of them are forged; second faces are drawn from them, too.
        forgeries: One is drawn by lot each time.
        seed: Of all chance.
        repeats: How often each face is forged; its twins are repeated as often.
        frames: Above 1: of each face a clip, (T, S, S, 3) with masks (T, S, S).
    """
    fakes, twins, masks, groups = [], [], [], []
    for number in range(len(faces)):
        for again in range(repeats):
            rng = np.random.default_rng([seed, number, again, 0x7E57])
            image, twin, mask = _forge_one(faces, number, forgeries, frames, rng)
            fakes.append(image)
            twins.append(twin)
            masks.append(mask)
            groups.append(faces[number].identity)
    count = len(fakes)
    return Trial(
        (*fakes, *twins),
        (*[1] * count, *[0] * count),
        (*masks, *[np.zeros_like(mask) for mask in masks]),
        (*groups, *groups),
    )


def _forge_one(
    faces: Sequence[Face],
    number: int,
    forgeries: Sequence[Forgery],
    frames: int,
    rng: np.random.Generator,
) -> tuple[Image, Image, Mask]:
    if frames == 1:
        forged = forge_pair(faces, number, forgeries, rng)
        return forged.image, forged.twin, forged.mask
    clip = forge_clip(faces, number, forgeries, frames, rng)
    return (
        np.stack([one.image for one in clip]),
        np.stack([one.twin for one in clip]),
        np.stack([one.mask for one in clip]),
    )


def apply_change(change: Callable[[Image], Image], given: Image) -> Image:
    """Return a picture after a change, or a clip after the same change to every frame."""
    if given.ndim != _CLIP or change is _coded:
        return change(given)
    return np.stack([change(frame) for frame in given])


def measure_conditions(detector: TrainedDetector, trial: Trial) -> dict[str, Any]:
    """Return the area under the curve under each condition, as plain JSON values."""
    return {
        name: trial.measure(detector, change, name).to_json() for name, change in CONDITIONS.items()
    }


def find_bounds(detector: TrainedDetector, trial: Trial) -> tuple[int, int, bool]:
    """Return the smallest square about a face, the lowest JPEG quality, and whether it works.

    Qualities and sizes are tried downwards until less than 70 % of what the detector has above
    chance is left. It works if the whole interval of its area lies above 0.5.
    """
    clean = trial.measure(detector, lambda image: image, "clean")
    works = bool(clean.low > 0.5)
    limit = 0.5 + _KEPT * (clean.value - 0.5)
    size = trial.images[0].shape[-2]

    def holds(change: Callable[[Image], Image]) -> bool:
        scores = detector.logits([apply_change(change, image) for image in trial.images])
        area = area_under_curve(trial.labels, scores)
        return area is not None and area >= limit

    least_quality, least_face = 100, size
    for quality in _QUALITIES:
        if not holds(lambda image, quality=quality: compress(image, quality)):  # type: ignore[misc]
            break
        least_quality = quality
    for share in _SHARES:
        if not holds(lambda image, share=share: rescale(image, share)):  # type: ignore[misc]
            break
        least_face = round(size * share)
    return least_face, least_quality, works
