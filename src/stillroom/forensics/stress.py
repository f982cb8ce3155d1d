"""How a detector holds when files are treated as the world treats them: the robustness suite.

Every treatment has five strengths and goes to real and fake files alike: treated on one side only,
it would be a sign of that side. What is drawn by lot (noise, where a crop lies) depends on the
file's source, so a fake and its real twin are treated the same. The suite is given a callable, so
that it knows no detector.

Source: strengths follow Hendrycks and Dietterich 2019, arXiv:1903.12261 (five of each); the chain
of a social network is resizing to its width and compressing, twice.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.face import Image
from stillroom.forensics.items import Item
from stillroom.forensics.treatments import compress, from_float, rescale
from stillroom.forensics.video_coding import code_frames
from stillroom.provenance import digest_text

__all__ = ["CLEAN", "STRENGTHS", "TREATMENTS", "Stressed", "stress_items", "treat"]

CLEAN = "none"
STRENGTHS = (1, 2, 3, 4, 5)
_BATCH = 16
Treatment = Callable[[Image, int, np.random.Generator], Image]


@dataclass(frozen=True, slots=True)
class Stressed:
    """One score of one item under one treatment; strength 0 is the file as it is."""

    id: str
    label: int
    group: str
    treatment: str
    strength: int
    score: float


def stress_items(
    items: Sequence[Item],
    load: Callable[[Item], Image],
    score: Callable[[Sequence[Image]], Iterable[float]],
    *,
    treatments: Sequence[str] = (),
    strengths: Sequence[int] = STRENGTHS,
    seed: int = 0,
) -> Iterator[Stressed]:
    """Yield the score of every item, as it is and under every treatment at every strength.

    Args:
        items: Rows; both classes.
        load: Gives an item's pixels, RGB (H, W, 3).
        score: Gives scores of some images, higher for fake.
        treatments: Names; default all.
        strengths: Of 1 to 5.
        seed: Of what is drawn by lot.

    Raises:
        DataError: If a treatment is not known, or one class is missing.
    """
    for name in treatments:
        if name not in TREATMENTS:
            raise _refused(f"there is no treatment {name!r}", f"one of: {', '.join(TREATMENTS)}")
    if len({item.label for item in items}) < 2:
        raise _refused("all items are of one class", "real and fake items: both are treated alike")
    plan = [(CLEAN, 0), *((name, s) for name in treatments or TREATMENTS for s in strengths)]
    for item in items:
        image = load(item)
        made = (treat(image, name, s, item.source or item.id, seed) for name, s in plan)
        scores: list[float] = []
        for batch in _batches(made):
            scores += [float(value) for value in score(batch)]
        if len(scores) != len(plan):
            raise _refused(
                f"the detector gave {len(scores)} scores for {len(plan)} images", "one an image"
            )
        group = f"{item.dataset}/{item.source or item.clip or item.id}"
        for (name, strength), value in zip(plan, scores, strict=True):
            yield Stressed(item.id, item.label, group, name, strength, value)


def treat(image: Image, name: str, strength: int, key: str, seed: int = 0) -> Image:
    """Return an image under a treatment; what is drawn by lot depends on key and seed alone."""
    if name == CLEAN:
        return image
    lot = int(digest_text(f"{seed} {name} {key}")[:15], 16)
    return TREATMENTS[name](image, strength - 1, np.random.default_rng(lot))


def _batches(images: Iterable[Image]) -> Iterator[list[Image]]:
    batch: list[Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _jpeg(image: Image, at: int, rng: np.random.Generator) -> Image:
    return compress(image, (90, 75, 50, 35, 20)[at])


def _webp(image: Image, at: int, rng: np.random.Generator) -> Image:
    return _encode(image, "WEBP", quality=(90, 75, 50, 30, 15)[at])


def _resize(image: Image, at: int, rng: np.random.Generator) -> Image:
    return rescale(image, (0.75, 0.6, 0.5, 0.35, 0.25)[at])


def _blur(image: Image, at: int, rng: np.random.Generator) -> Image:
    sigma = (0.5, 1.0, 1.5, 2.0, 3.0)[at]
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _noise(image: Image, at: int, rng: np.random.Generator) -> Image:
    return from_float(image + rng.normal(0, (2, 4, 8, 14, 20)[at], image.shape))


def _colour(image: Image, at: int, rng: np.random.Generator) -> Image:
    """Change gamma, saturation and contrast, each up or down by lot."""
    step = (0.05, 0.1, 0.2, 0.3, 0.4)[at]
    gamma, saturation, contrast = (1 + step * float(rng.choice([-1, 1])) for _ in range(3))
    light = (image.astype(np.float32) / 255) ** np.float32(gamma)
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * np.float32(saturation)
    return from_float(((light - 0.5) * np.float32(contrast) + 0.5) * 255)


def _crop(image: Image, at: int, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    share = (0.02, 0.05, 0.1, 0.15, 0.2)[at]
    rows, columns = max(round(height * share), 1), max(round(width * share), 1)
    top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
    cut = image[top : height - rows + top, left : width - columns + left]
    return np.ascontiguousarray(cut)


def _rotate(image: Image, at: int, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    angle = (1.0, 2.5, 5.0, 7.5, 10.0)[at] * float(rng.choice([-1, 1]))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, dtype=np.uint8)


def _screenshot(image: Image, at: int, rng: np.random.Generator) -> Image:
    """Show at another scale and take the screen's pixels, without compression."""
    share = (0.9, 1.25, 0.8, 1.5, 0.65)[at]
    height, width = image.shape[:2]
    size = max(round(width * share), 2), max(round(height * share), 2)
    method = cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _social(image: Image, at: int, rng: np.random.Generator) -> Image:
    """Pass a chain of networks: bound the width and compress, once for each strength."""
    qualities = (85, 75, 70, 65, 60)
    out = image
    for quality in qualities[: at + 1]:
        height, width = out.shape[:2]
        share = min(1080 / max(height, width), 0.95)
        size = max(round(width * share), 32), max(round(height * share), 32)
        out = compress(
            np.asarray(cv2.resize(out, size, interpolation=cv2.INTER_AREA), np.uint8), quality
        )
    return out


def _video(image: Image, at: int, rng: np.random.Generator) -> Image:
    """A frame of H.264, at rate factors from fine to poor."""
    return code_frames([image], (18, 23, 28, 34, 40)[at])[0]


def _encode(image: Image, kind: str, *, quality: int) -> Image:
    from PIL import Image as Pictures

    memory = io.BytesIO()
    Pictures.fromarray(image).save(memory, kind, quality=quality)
    with Pictures.open(memory) as opened:
        return np.asarray(opened.convert("RGB"))


TREATMENTS: dict[str, Treatment] = {
    "jpeg": _jpeg,
    "webp": _webp,
    "resize": _resize,
    "blur": _blur,
    "noise": _noise,
    "colour": _colour,
    "crop": _crop,
    "rotation": _rotate,
    "screenshot": _screenshot,
    "social": _social,
    "h264": _video,
}
"""What is done to files, by name; each takes the image, the strength from 0 to 4, and a lot."""


def _refused(what: str, expected: str) -> DataError:
    return DataError(what, code="forensics.stress", expected=expected, next="see benchmark stress")
