"""Robustness suite: perturbations (treatments, as JPEG or blur) of test images, by strength.

Each treatment has five strengths and applies to real and fake files alike; applied to one class, it
would reveal the class. Random parts (noise, crop position) depend on the file's source, so that a
fake and its real twin are treated equally. The suite takes a scoring function, and depends on no
detector.

The threshold is chosen on untreated validation files; treatments have no thresholds of their own. A
flip is a file whose verdict changes by the treatment.

Source: strengths follow Hendrycks and Dietterich 2019, arXiv:1903.12261 (five of each); the chain
of a social network is resizing to its width and compressing, twice.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.evaluate.charts import LineChart, Series
from stillroom.forensics.benchmark.evaluation import EvaluationProtocol, open_protocol
from stillroom.forensics.benchmark.manifest import ManifestItem, find_manifest, read_items
from stillroom.forensics.benchmark.metrics import measure_scores, select_threshold
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.transforms import compress_jpeg, rescale, to_uint8
from stillroom.forensics.media.video import apply_video_codec
from stillroom.provenance import digest_text

__all__ = [
    "CLEAN",
    "STRENGTHS",
    "TREATMENTS",
    "RobustnessCurve",
    "RobustnessPoint",
    "RobustnessReport",
    "RobustnessRow",
    "Scorer",
    "apply_treatment",
    "measure_curves",
    "measure_robustness",
    "score_treatments",
]

CLEAN = "none"
STRENGTHS = (1, 2, 3, 4, 5)
_BATCH = 16
Treatment = Callable[[Image, int, np.random.Generator], Image]


@dataclass(frozen=True, slots=True)
class RobustnessRow:
    """One score of one item under one treatment; strength 0 is the untreated file."""

    id: str
    label: int
    group: str
    treatment: str
    strength: int
    score: float


def score_treatments(
    items: Sequence[ManifestItem],
    load: Callable[[ManifestItem], Image],
    score: Callable[[Sequence[Image]], Iterable[float]],
    *,
    treatments: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[RobustnessRow]:
    """Yield the score of every item, untreated and under every treatment at every strength.

    Raises:
        DataError: If a treatment is unknown, or one class is missing.
    """
    for name in treatments:
        if name not in TREATMENTS:
            raise _refused(f"there is no treatment {name!r}", f"one of: {', '.join(TREATMENTS)}")
    if len({item.label for item in items}) < 2:
        raise _refused("all items are of one class", "real and fake items, treated alike")
    plan = [(CLEAN, 0), *((name, s) for name in treatments or TREATMENTS for s in STRENGTHS)]
    for item in items:
        image = load(item)
        treated = (
            apply_treatment(image, name, s, item.source or item.id, seed) for name, s in plan
        )
        scores: list[float] = []
        while batch := list(islice(treated, _BATCH)):
            scores += [float(value) for value in score(batch)]
        if len(scores) != len(plan):
            raise _refused(
                f"the detector returned {len(scores)} scores for {len(plan)} images",
                "one score per image",
            )
        group = f"{item.dataset}/{item.source or item.clip or item.id}"
        for (name, strength), value in zip(plan, scores, strict=True):
            yield RobustnessRow(item.id, item.label, group, name, strength, value)


def apply_treatment(image: Image, name: str, strength: int, key: str, seed: int = 0) -> Image:
    """Apply a treatment to an image; randomness depends on key and seed alone."""
    if name == CLEAN:
        return image
    treatment_seed = int(digest_text(f"{seed} {name} {key}")[:15], 16)
    return TREATMENTS[name](image, strength - 1, np.random.default_rng(treatment_seed))


def _blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    sigma = (0.5, 1.0, 1.5, 2.0, 3.0)[level]
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _color(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Change gamma, saturation and contrast, each up or down at random."""
    step = (0.05, 0.1, 0.2, 0.3, 0.4)[level]
    gamma, saturation, contrast = (1 + step * float(rng.choice([-1, 1])) for _ in range(3))
    light = (image.astype(np.float32) / 255) ** np.float32(gamma)
    gray = light.mean(axis=2, keepdims=True)
    light = gray + (light - gray) * np.float32(saturation)
    return to_uint8(((light - 0.5) * np.float32(contrast) + 0.5) * 255)


def _crop(image: Image, level: int, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    share = (0.02, 0.05, 0.1, 0.15, 0.2)[level]
    rows, columns = max(round(height * share), 1), max(round(width * share), 1)
    top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
    cut = image[top : height - rows + top, left : width - columns + left]
    return np.ascontiguousarray(cut)


def _rotate(image: Image, level: int, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    angle = (1.0, 2.5, 5.0, 7.5, 10.0)[level] * float(rng.choice([-1, 1]))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, dtype=np.uint8)


def _screenshot(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Resize as on a screen of another scale, without compression."""
    share = (0.9, 1.25, 0.8, 1.5, 0.65)[level]
    height, width = image.shape[:2]
    size = max(round(width * share), 2), max(round(height * share), 2)
    method = cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _social(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Simulate a chain of social networks: bound the width and compress, once per strength."""
    qualities = (85, 75, 70, 65, 60)
    out = image
    for quality in qualities[: level + 1]:
        height, width = out.shape[:2]
        share = min(1080 / max(height, width), 0.95)
        size = max(round(width * share), 32), max(round(height * share), 32)
        out = compress_jpeg(
            np.asarray(cv2.resize(out, size, interpolation=cv2.INTER_AREA), np.uint8), quality
        )
    return out


def _webp(image: Image, level: int, rng: np.random.Generator) -> Image:
    from PIL import Image as Pictures

    memory = io.BytesIO()
    Pictures.fromarray(image).save(memory, "WEBP", quality=(90, 75, 50, 30, 15)[level])
    with Pictures.open(memory) as opened:
        return np.asarray(opened.convert("RGB"))


TREATMENTS: dict[str, Treatment] = {
    "jpeg": lambda image, level, rng: compress_jpeg(image, (90, 75, 50, 35, 20)[level]),
    "webp": _webp,
    "resize": lambda image, level, rng: rescale(image, (0.75, 0.6, 0.5, 0.35, 0.25)[level]),
    "blur": _blur,
    "noise": lambda image, level, rng: to_uint8(
        image + rng.normal(0, (2, 4, 8, 14, 20)[level], image.shape)
    ),
    "color": _color,
    "crop": _crop,
    "rotation": _rotate,
    "screenshot": _screenshot,
    "social": _social,
    # one frame of H.264, at rate factors from high to low quality
    "h264": lambda image, level, rng: apply_video_codec([image], (18, 23, 28, 34, 40)[level])[0],
}
"""Treatments by name; each takes the image, the strength from 0 to 4, and a generator."""


def _refused(problem: str, expected: str) -> DataError:
    return DataError(
        problem,
        code="forensics.stress",
        expected=expected,
        next="stillroom new forensics.benchmark",
    )


@dataclass(frozen=True, slots=True)
class RobustnessPoint:
    """One strength: the area with its interval, and the shares of flipped real and fake ones."""

    strength: int
    auc: Metric
    real_flips: float
    fake_flips: float


@dataclass(frozen=True, slots=True)
class RobustnessCurve:
    """One treatment from strength 0, the untreated files."""

    treatment: str
    points: tuple[RobustnessPoint, ...]

    @property
    def mean_auc(self) -> float:
        """Mean of the areas at strengths above 0."""
        values = [point.auc.value for point in self.points if point.strength]
        return sum(values) / len(values) if values else math.nan

    def line(self) -> str:
        """Format as one line."""
        areas = ", ".join(
            f"{point.auc.value:.3f} [{point.auc.low:.3f}, {point.auc.high:.3f}]"
            for point in self.points
        )
        worst = self.points[-1]
        return (
            f"{self.treatment}: auc {areas}; mean {self.mean_auc:.3f}; verdicts turned at the "
            f"strongest: {worst.real_flips:.0%} of real, {worst.fake_flips:.0%} of fake"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "treatment": self.treatment,
            "mean_auc": self.mean_auc,
            "points": [{**asdict(point), "auc": point.auc.to_json()} for point in self.points],
        }

    def chart(self) -> LineChart:
        """Return the area with its interval, by strength."""
        points = tuple((float(point.strength), point.auc.value) for point in self.points)
        spans = tuple((point.auc.low, point.auc.high) for point in self.points)
        return LineChart(
            self.treatment, "strength", "area", (Series(self.treatment, points, spans=spans),)
        )


def measure_curves(
    rows: Iterable[RobustnessRow], threshold: float, *, resamples: int = 1000, seed: int = 0
) -> list[RobustnessCurve]:
    """Return a curve for each treatment."""
    cells: dict[tuple[str, int], list[RobustnessRow]] = defaultdict(list)
    for row in rows:
        cells[row.treatment, row.strength].append(row)
    clean = cells.get((CLEAN, 0), [])
    clean_verdicts = {row.id: row.score >= threshold for row in clean}
    start = _measure_point(0, clean, clean_verdicts, threshold, resamples, seed)
    names = dict.fromkeys(name for name, _ in cells if name != CLEAN)
    return [
        RobustnessCurve(
            name,
            (
                start,
                *(
                    _measure_point(
                        strength, cells[name, strength], clean_verdicts, threshold, resamples, seed
                    )
                    for strength in sorted(s for treatment, s in cells if treatment == name)
                ),
            ),
        )
        for name in names
    ]


def _measure_point(
    strength: int,
    rows: Sequence[RobustnessRow],
    clean_verdicts: dict[str, bool],
    threshold: float,
    resamples: int,
    seed: int,
) -> RobustnessPoint:
    metrics = measure_scores(
        [row.label for row in rows],
        [row.score for row in rows],
        [row.group for row in rows],
        resamples=resamples,
        seed=seed,
    )
    flips = []
    for label in (0, 1):
        class_rows = [row for row in rows if row.label == label]
        turned = sum((row.score >= threshold) != clean_verdicts[row.id] for row in class_rows)
        flips.append(turned / len(class_rows) if class_rows else math.nan)
    return RobustnessPoint(strength, metrics["auc"], *flips)


Scorer = Callable[[Sequence[Image]], Iterable[float]]


@dataclass(frozen=True)
class RobustnessReport:
    """Curves of one detector on one manifest, with the threshold and its origin."""

    detector: str
    protocol: EvaluationProtocol
    threshold: float
    threshold_from: str
    curves: tuple[RobustnessCurve, ...]

    def lines(self) -> list[str]:
        """Format the curves as lines."""
        head = f"{self.detector}: protocol {self.protocol.digest}, threshold {self.threshold:.4g} "
        return [f"{head}chosen on {self.threshold_from}", *(curve.line() for curve in self.curves)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "detector": self.detector,
            "protocol_digest": self.protocol.digest,
            "protocol": self.protocol.to_json(),
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "curves": [curve.to_json() for curve in self.curves],
        }


def measure_robustness(
    manifest: Path,
    scorer: str | Scorer,
    *,
    treatments: Sequence[str] = (),
    split: str = "test",
    seed: int = 0,
) -> RobustnessReport:
    """Run the suite over a manifest's images.

    Args:
        manifest: The file, or its folder.
        scorer: A function from a list of RGB images (H, W, 3), uint8, to scores, higher for fake;
            or the folder of a trained detector, which takes the images as face crops, as in the
            lab's data sets.
        treatments: Names; default: all.
        split: Split of the rows; empty for all.
        seed: Random seed.

    Raises:
        DataError: If rows, files or the scorer are unsuitable.
        CheckpointError: If the folder is not a detector.
    """
    from stillroom.forensics.inference.trained_detector import TrainedDetector

    score = TrainedDetector.open(Path(scorer)).logits if isinstance(scorer, str) else scorer
    file = find_manifest(manifest)
    items = read_items(file)
    tested = [item for item in items if not split or item.split == split]
    if not tested:
        raise DataError(
            f"the split {split!r} has no rows",
            code="forensics.stress",
            where=str(file),
            expected="rows of that split",
            next="name another split, or '' for all",
        )

    def load(item: ManifestItem) -> Image:
        return load_image(file.parent / item.path).image

    threshold_items = [
        item for item in items if item.split == "validation" and split != "validation"
    ]
    source = "the validation split"
    if len({item.label for item in threshold_items}) < 2:
        threshold_items, source = tested, "the tested files as they are"
    scores = [float(value) for item in threshold_items for value in score([load(item)])]
    threshold = select_threshold([item.label for item in threshold_items], scores)
    if threshold is None:
        raise _no_threshold_error(file, source)
    rows = score_treatments(tested, load, score, treatments=treatments, seed=seed)
    curves = measure_curves(rows, threshold, seed=seed)
    protocol = open_protocol(items, split=split, treatment="suite", threshold_from=source)
    name = scorer if isinstance(scorer, str) else getattr(scorer, "__name__", "detector")
    return RobustnessReport(name, protocol, threshold, source, tuple(curves))


def _no_threshold_error(file: Path, source: str) -> DataError:
    return DataError(
        f"no threshold can be chosen on {source}: a class is missing, or the detector scores no "
        "better than chance",
        code="forensics.stress",
        where=str(file),
        expected="a detector that tells fake files from real ones before they are treated",
        next="train it further, or measure its scores alone (measurement: {type: scores})",
    )
