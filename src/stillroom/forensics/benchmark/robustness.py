"""Robustness suite: image treatments by strength, curves by treatment, and an HTML report.

Every treatment has five strengths and goes to real and fake files alike: treated on one side only,
it would be a sign of that side. What is drawn by lot (noise, where a crop lies) depends on the
file's source, so a fake and its real twin are treated the same. The suite is given a callable, so
that it knows no detector.

Source: strengths follow Hendrycks and Dietterich 2019, arXiv:1903.12261 (five of each); the chain
of a social network is resizing to its width and compressing, twice.

The threshold is the one that was chosen on files as they are, of a validation set; none of a
treatment's own. A flip is a file whose verdict changes though only its treatment did.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.benchmark.evaluation import EvaluationProtocol, open_protocol
from stillroom.forensics.benchmark.manifest import ManifestItem, find_manifest, read_items
from stillroom.forensics.benchmark.metrics import measure_scores, select_threshold
from stillroom.forensics.check.report_page import render_page
from stillroom.forensics.media.face import Image
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
    "load_scorer",
    "measure_curves",
    "measure_robustness",
    "render_curves",
    "render_robustness_page",
    "score_treatments",
]


CLEAN = "none"


STRENGTHS = (1, 2, 3, 4, 5)


_BATCH = 16


Treatment = Callable[[Image, int, np.random.Generator], Image]


@dataclass(frozen=True, slots=True)
class RobustnessRow:
    """One score of one item under one treatment; strength 0 is the file as it is."""

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
    strengths: Sequence[int] = STRENGTHS,
    seed: int = 0,
) -> Iterator[RobustnessRow]:
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
        made = (apply_treatment(image, name, s, item.source or item.id, seed) for name, s in plan)
        scores: list[float] = []
        for batch in _batches(made):
            scores += [float(value) for value in score(batch)]
        if len(scores) != len(plan):
            raise _refused(
                f"the detector gave {len(scores)} scores for {len(plan)} images", "one an image"
            )
        group = f"{item.dataset}/{item.source or item.clip or item.id}"
        for (name, strength), value in zip(plan, scores, strict=True):
            yield RobustnessRow(item.id, item.label, group, name, strength, value)


def apply_treatment(image: Image, name: str, strength: int, key: str, seed: int = 0) -> Image:
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
    return compress_jpeg(image, (90, 75, 50, 35, 20)[at])


def _webp(image: Image, at: int, rng: np.random.Generator) -> Image:
    return _encode(image, "WEBP", quality=(90, 75, 50, 30, 15)[at])


def _resize(image: Image, at: int, rng: np.random.Generator) -> Image:
    return rescale(image, (0.75, 0.6, 0.5, 0.35, 0.25)[at])


def _blur(image: Image, at: int, rng: np.random.Generator) -> Image:
    sigma = (0.5, 1.0, 1.5, 2.0, 3.0)[at]
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _noise(image: Image, at: int, rng: np.random.Generator) -> Image:
    return to_uint8(image + rng.normal(0, (2, 4, 8, 14, 20)[at], image.shape))


def _color(image: Image, at: int, rng: np.random.Generator) -> Image:
    """Change gamma, saturation and contrast, each up or down by lot."""
    step = (0.05, 0.1, 0.2, 0.3, 0.4)[at]
    gamma, saturation, contrast = (1 + step * float(rng.choice([-1, 1])) for _ in range(3))
    light = (image.astype(np.float32) / 255) ** np.float32(gamma)
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * np.float32(saturation)
    return to_uint8(((light - 0.5) * np.float32(contrast) + 0.5) * 255)


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
        out = compress_jpeg(
            np.asarray(cv2.resize(out, size, interpolation=cv2.INTER_AREA), np.uint8), quality
        )
    return out


def _video(image: Image, at: int, rng: np.random.Generator) -> Image:
    """A frame of H.264, at rate factors from fine to poor."""
    return apply_video_codec([image], (18, 23, 28, 34, 40)[at])[0]


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
    "colour": _color,
    "crop": _crop,
    "rotation": _rotate,
    "screenshot": _screenshot,
    "social": _social,
    "h264": _video,
}


"""What is done to files, by name; each takes the image, the strength from 0 to 4, and a lot."""


def _refused(what: str, expected: str) -> DataError:
    return DataError(what, code="forensics.stress", expected=expected, next="see benchmark stress")


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 250, 150, 34, 22


@dataclass(frozen=True, slots=True)
class RobustnessPoint:
    """One strength: the area with its interval, and the share of real and fake verdicts turned."""

    strength: int
    auc: Metric
    real_flips: float
    fake_flips: float


@dataclass(frozen=True, slots=True)
class RobustnessCurve:
    """One treatment from strength 0, the files as they are."""

    treatment: str
    points: tuple[RobustnessPoint, ...]

    @property
    def mean_auc(self) -> float:
        """Mean of the areas at strengths above 0."""
        values = [point.auc.value for point in self.points if point.strength]
        return sum(values) / len(values) if values else math.nan

    def line(self) -> str:
        """Return the curve as one line."""
        said = ", ".join(
            f"{point.auc.value:.3f} [{point.auc.low:.3f}, {point.auc.high:.3f}]"
            for point in self.points
        )
        worst = self.points[-1]
        return (
            f"{self.treatment}: auc {said}; mean {self.mean_auc:.3f}; verdicts turned at the "
            f"strongest: {worst.real_flips:.0%} of real, {worst.fake_flips:.0%} of fake"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "treatment": self.treatment,
            "mean_auc": self.mean_auc,
            "points": [
                {
                    "strength": point.strength,
                    "auc": point.auc.to_json(),
                    "real_flips": point.real_flips,
                    "fake_flips": point.fake_flips,
                }
                for point in self.points
            ],
        }


def measure_curves(
    rows: Iterable[RobustnessRow], threshold: float, *, resamples: int = 1000, seed: int = 0
) -> list[RobustnessCurve]:
    """Return a curve for every treatment.

    Args:
        rows: As ``stress_items`` yields them.
        threshold: Scores from here on count as fake; chosen on other files.
        resamples: Draws of groups for intervals.
        seed: Of the draws.
    """
    cells: dict[tuple[str, int], list[RobustnessRow]] = defaultdict(list)
    for row in rows:
        cells[row.treatment, row.strength].append(row)
    clean = cells.get((CLEAN, 0), [])
    before = {row.id: row.score >= threshold for row in clean}
    start = _measure_point(0, clean, before, threshold, resamples, seed)
    names = dict.fromkeys(name for name, _ in cells if name != CLEAN)
    return [
        RobustnessCurve(
            name,
            (
                start,
                *(
                    _measure_point(
                        strength, cells[name, strength], before, threshold, resamples, seed
                    )
                    for strength in sorted(s for other, s in cells if other == name)
                ),
            ),
        )
        for name in names
    ]


def _measure_point(
    strength: int,
    rows: Sequence[RobustnessRow],
    before: dict[str, bool],
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
        some = [row for row in rows if row.label == label]
        turned = sum((row.score >= threshold) != before[row.id] for row in some)
        flips.append(turned / len(some) if some else math.nan)
    return RobustnessPoint(strength, metrics["auc"], *flips)


def render_curves(curves: Sequence[RobustnessCurve]) -> str:
    """Return small plots as inline SVG, one a treatment: the area with its band, over strengths."""
    return "\n".join(_render_curve(curve) for curve in curves)


def _render_curve(curve: RobustnessCurve) -> str:
    last = max(curve.points[-1].strength, 1)

    def x(strength: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * strength / last

    def y(value: float) -> float:
        shown = min(max(value, 0.3), 1.0)
        return 8 + (_HEIGHT - _BOTTOM - 8) * (1 - (shown - 0.3) / 0.7)

    points = curve.points
    upper = [f"{x(p.strength):.1f},{y(p.auc.high):.1f}" for p in points if p.auc.high == p.auc.high]
    lower = [f"{x(p.strength):.1f},{y(p.auc.low):.1f}" for p in points if p.auc.low == p.auc.low]
    line = " ".join(f"{x(p.strength):.1f},{y(p.auc.value):.1f}" for p in points)
    dots = "".join(
        f'<circle class="dot" cx="{x(p.strength):.1f}" cy="{y(p.auc.value):.1f}" r="3"/>'
        for p in points
    )
    marks = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 5}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0.5, 0.75, 1.0)
    )
    feet = "".join(
        f'<text class="tick" x="{x(p.strength):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{p.strength}</text>"
        for p in points
    )
    name = escape(curve.treatment)
    return (
        f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{escape(curve.line())}">{marks}'
        f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>'
        f'<polyline class="line" points="{line}"/>{dots}{feet}</svg></figure>'
    )


Scorer = Callable[[Sequence[Image]], Iterable[float]]


@dataclass(frozen=True)
class RobustnessReport:
    """The curves of one detector on one manifest, the threshold, and where that came from."""

    detector: str
    protocol: EvaluationProtocol
    threshold: float
    threshold_from: str
    curves: tuple[RobustnessCurve, ...]

    def lines(self) -> list[str]:
        """Return the curves as a user reads them."""
        head = f"{self.detector}: protocol {self.protocol.digest}, threshold {self.threshold:.4g} "
        return [f"{head}chosen on {self.threshold_from}", *(curve.line() for curve in self.curves)]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
    allow_code: bool = False,
) -> RobustnessReport:
    """Run the suite over a manifest's pictures.

    Args:
        manifest: The file, or its folder.
        scorer: A callable, ``FILE.py:NAME`` of one, or the folder of a trained detector, which
            takes the pictures as squares about faces, as the lab's sets hold them.
        treatments: Names; default all.
        split: Which rows; empty for all.
        seed: Of what is drawn by lot.
        allow_code: Whether a file may be run.

    Raises:
        DataError: If rows, files or the scorer are not as they have to be.
    """
    score = load_scorer(scorer, allow_code=allow_code) if isinstance(scorer, str) else scorer
    file = find_manifest(manifest)
    items = read_items(file)
    tested = [item for item in items if not split or item.split == split]
    if not tested:
        raise DataError(
            f"no row is of the split {split!r}",
            code="forensics.stress",
            where=str(file),
            expected="rows of that split",
            next="name another --split, or '' for all",
        )

    def load(item: ManifestItem) -> Image:
        return load_image(file.parent / item.path).image

    chosen = [item for item in items if item.split == "validation" and split != "validation"]
    source = "the validation split"
    if len({item.label for item in chosen}) < 2:
        chosen, source = tested, "the tested files as they are"
    scores = [float(value) for item in chosen for value in score([load(item)])]
    threshold = select_threshold([item.label for item in chosen], scores)
    rows = score_treatments(tested, load, score, treatments=treatments, seed=seed)
    curves = measure_curves(rows, threshold if threshold is not None else 0.5, seed=seed)
    protocol = open_protocol(items, split=split, treatment="suite", threshold_from=source)
    name = scorer if isinstance(scorer, str) else getattr(scorer, "__name__", "detector")
    return RobustnessReport(name, protocol, threshold or 0.0, source, tuple(curves))


def load_scorer(named: str, *, allow_code: bool) -> Scorer:
    """Return a trained detector's scores of squares about faces, or what ``FILE.py:NAME`` names.

    Raises:
        DataError: If code may not be run, or the file has no such function.
        CheckpointError: If a folder is named that holds no detector.
    """
    if Path(named).is_dir():
        from stillroom.forensics.inference.trained_detector import TrainedDetector

        return TrainedDetector.open(Path(named)).logits
    path, _, name = named.rpartition(":")
    if not allow_code:
        raise _no_scorer(named, "a file of code was named, and code may not be run", "--allow-code")
    spec = importlib.util.spec_from_file_location("stillroom_scorer", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise _no_scorer(named, f"{path or named} is no Python file", "FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise _no_scorer(named, f"{path} has no function {name!r}", "FILE.py:NAME")
    return found  # type: ignore[no-any-return]  # what it returns is checked where it is used


def render_robustness_page(strain: RobustnessReport) -> str:
    """Return the curves as one HTML page with everything inline."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in strain.lines())
    return render_page(
        f"How {strain.detector} holds",
        "<p>Area under the curve over five strengths of each treatment, given to real and fake "
        "files alike; 0.5 is chance. Bands are 95 % intervals over recordings.</p>"
        f'<section><div class="plots">{render_curves(strain.curves)}</div></section>'
        f'<section><h2>Figures</h2><ul class="quiet">{lines}</ul></section>',
    )


def _no_scorer(named: str, what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.scorer",
        where=named,
        expected=expected,
        next="def score(images): return [0.5 for image in images]",
    )
