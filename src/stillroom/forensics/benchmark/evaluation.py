"""Frame-level and video-level evaluation (AUC and others) of detector scores.

The protocol is fixed. Scores come from any detector: a table of ids and scores suffices. Frames
and clips (video level, ``forensics.aggregation``) are reported where a manifest has clips; each
generator is also measured alone against all real items. Thresholds are chosen on the validation
split, never on the tested one.

One detector may score 0.81 or 0.93 on the same set, depending on crop, frames and aggregation. Each
result therefore carries the digest of its protocol, and results of different protocols are not
compared.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.aggregation import Aggregation, aggregate_frame_scores
from stillroom.forensics.benchmark.manifest import ManifestItem, digest_items
from stillroom.forensics.benchmark.metrics import (
    bootstrap_areas,
    measure_scores,
    run_delong_test,
    select_threshold,
)
from stillroom.forensics.benchmark.splits import leave_one_out
from stillroom.objects.disk import require_file
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json

__all__ = [
    "DetectorComparison",
    "DetectorEvaluation",
    "EvaluationProtocol",
    "MissingScorePolicy",
    "ScoringUnit",
    "compare_evaluations",
    "evaluate_folds",
    "evaluate_scores",
    "list_differences",
    "open_protocol",
    "read_evaluation",
    "read_scores",
]

ScoringUnit = Literal["frame", "clip"]
MissingScorePolicy = Literal["refuse", "drop", "half"]
_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "av")


@dataclass(frozen=True)
class EvaluationProtocol:
    """Definition of a measurement.

    Attributes:
        items: Digest of the measured manifest rows.
        split: Split of the manifest; empty for all.
        unit: Whether files (``frame``) or whole clips are scored.
        frames: Frames per clip; 0 where the manifest lists the frames.
        choice: Selection of the frames.
        crop: Cropping of faces.
        size: Side of the detector's input, in pixels; 0 if the detector decides.
        aggregation: Aggregation of frame scores to a clip: mean, maximum, or mean of the highest
            fifth.
        no_score: Handling of items without a score: an error, dropped, or a score of 0.5.
        treatment: Processing of all files of both classes beforehand, such as ``jpeg-75``.
        threshold_from: Split that thresholds are chosen on.
        versions: Versions of packages that decode and resize.
    """

    items: str
    split: str = "test"
    unit: ScoringUnit = "frame"
    frames: int = 0
    choice: str = "named by the manifest"
    crop: str = "whole picture"
    size: int = 0
    aggregation: Aggregation = "mean"
    no_score: MissingScorePolicy = "refuse"
    treatment: str = "none"
    threshold_from: str = "validation"
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the protocol, 16 hexadecimal digits."""
        return digest_json(self.to_json())[:16]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {**asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvaluationProtocol:
        """Restore a protocol from ``to_json`` values.

        Raises:
            DataError: If a key is missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise DataError(
                f"this is not a protocol: {error}",
                code="forensics.protocol",
                expected=", ".join(cls.__dataclass_fields__),
                next="score again with this version",
            ) from error


def open_protocol(items: Sequence[ManifestItem], **settings: Any) -> EvaluationProtocol:
    """Build the protocol for measuring these items, with the installed package versions.

    Raises:
        DataError: If a setting has an invalid value.
    """
    for name, kinds in (
        ("unit", ScoringUnit),
        ("aggregation", Aggregation),
        ("no_score", MissingScorePolicy),
    ):
        if name in settings and settings[name] not in get_args(kinds):
            raise DataError(
                f"the protocol's {name} is {settings[name]!r}",
                code="forensics.protocol",
                expected=" or ".join(get_args(kinds)),
                next="choose one of these",
            )
    versions = {name: _version(name) for name in _PACKAGES}
    return EvaluationProtocol(items=digest_items(items), versions=versions, **settings)


def list_differences(
    first_protocol: EvaluationProtocol, second_protocol: EvaluationProtocol
) -> list[str]:
    """Return the differences of two protocols, a line each; empty if equal."""
    first, second = first_protocol.to_json(), second_protocol.to_json()
    return [f"{key}: {first[key]} and {second[key]}" for key in first if first[key] != second[key]]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


_VERSION = 1
_ScoredUnit = tuple[str, int, float, str]
"""Unit, label, score and group."""


@dataclass(frozen=True)
class DetectorEvaluation:
    """Results of one detector under one protocol.

    ``metrics`` are over all items, ``by_generator`` over each generator's fakes against all real
    items; ``scores`` are (unit, label, score, group), kept for comparing detectors on the same
    items. ``missing`` is the number of items without a score.
    """

    detector: str
    protocol: EvaluationProtocol
    metrics: Mapping[str, Metric]
    by_generator: Mapping[str, Metric]
    threshold: float | None
    missing: int
    scores: tuple[_ScoredUnit, ...] = field(repr=False, default=())

    def lines(self) -> list[str]:
        """Format the results as lines."""
        lines = [
            f"{self.detector}: protocol {self.protocol.digest}, {len(self.scores)} "
            f"{self.protocol.unit}s, {self.missing} without a score"
        ]
        lines += [f"  {metric.name}: {_figure(metric)}" for metric in self.metrics.values()]
        if self.threshold is None and self.protocol.threshold_from != self.protocol.split:
            lines.append(
                f"  no threshold, so no balanced accuracy: the split "
                f"{self.protocol.threshold_from!r} lacks a class, or scores no better than chance"
            )
        lines += [
            f"  auc on {name}: {_figure(metric)}" for name, metric in self.by_generator.items()
        ]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "version": _VERSION,
            "kind": "forensics-standing",
            "detector": self.detector,
            "protocol_digest": self.protocol.digest,
            "protocol": self.protocol.to_json(),
            "metrics": [metric.to_json() for metric in self.metrics.values()],
            "by_generator": {name: metric.to_json() for name, metric in self.by_generator.items()},
            "threshold": self.threshold,
            "missing": self.missing,
            "scores": [list(row) for row in self.scores],
        }


@dataclass(frozen=True)
class DetectorComparison:
    """Two detectors on the same items: the difference of areas and its p-value (DeLong).

    ``low`` and ``high`` bound the difference over resampled groups: items of one clip or source are
    not independent, while DeLong's test assumes that they are.
    """

    difference: float
    p_value: float
    low: float
    high: float
    n: int

    def line(self) -> str:
        """Format as one line."""
        text = f"difference of areas {self.difference:+.4f}, 95 % over groups {self.low:+.4f} to "
        text += f"{self.high:+.4f}, DeLong p = {self.p_value:.4g}, n {self.n}"
        if self.low <= 0 <= self.high:
            return f"{text}: no difference shown"
        return text


def evaluate_scores(
    items: Sequence[ManifestItem],
    scores: Mapping[str, float],
    *,
    detector: str = "detector",
    resamples: int = 2000,
    seed: int = 0,
    **settings: Any,
) -> DetectorEvaluation:
    """Evaluate a table of scores.

    Raises:
        DataError: If scores are missing and the protocol forbids it, or a split is empty.
    """
    protocol = open_protocol(items, **settings)
    tested = _select_split(items, protocol.split)
    if protocol.unit == "clip" and not any(item.clip for item in tested):
        raise _invalid_scores(
            "whole clips are asked for, and no row of the manifest names a clip",
            "the column clip, or scores of files",
        )
    rows, missing = _rows(tested, scores, protocol)
    threshold_items = [item for item in items if item.split == protocol.threshold_from]
    threshold = None
    if threshold_items and protocol.threshold_from != protocol.split:
        known, _ = _rows(threshold_items, scores, protocol)
        threshold = select_threshold([row[1] for row in known], [row[2] for row in known])
    metrics = _measure(rows, threshold=threshold, resamples=resamples, seed=seed)
    generator_of = {_name(item, protocol): item.generator for item in tested}
    by_generator = {}
    for generator in sorted({item.generator for item in tested if item.label}):
        generator_rows = [row for row in rows if not row[1] or generator_of[row[0]] == generator]
        measured = _measure(generator_rows, resamples=resamples, seed=seed)
        by_generator[generator or "not named"] = measured["auc"]
    return DetectorEvaluation(
        detector, protocol, metrics, by_generator, threshold, missing, tuple(sorted(rows))
    )


def _measure(rows: Sequence[_ScoredUnit], **settings: Any) -> dict[str, Metric]:
    _, labels, scores, groups = zip(*rows, strict=True) if rows else ((),) * 4
    return measure_scores(labels, scores, groups, **settings)


def evaluate_folds(
    items: Sequence[ManifestItem],
    scores: Mapping[str, float],
    by: str,
    *,
    seed: int = 0,
    no_score: MissingScorePolicy = "refuse",
) -> dict[str, Metric]:
    """Return the area on the held-out part of each fold of ``leave_one_out``.

    The caller ensures that scores come from detectors trained on the training rows of each fold;
    with one detector for all, a figure is its result on that part alone.

    Raises:
        DataError: If there is nothing to leave out, or an item has no score.
    """
    if by not in {"generator", "source"}:
        raise _invalid_scores(f"cannot leave one out by {by!r}", "generator or source")
    areas = {}
    for fold in leave_one_out(items, "generator" if by == "generator" else "source", seed=seed):
        rows, _ = _rows(fold.test, scores, EvaluationProtocol("", "", no_score=no_score))
        if rows:
            areas[fold.name] = _measure(rows, seed=seed)["auc"]
    return areas


def compare_evaluations(
    first_result: DetectorEvaluation, second_result: DetectorEvaluation
) -> DetectorComparison:
    """Compare two detectors evaluated under one protocol.

    Raises:
        DataError: If protocols or scored items differ, or a class is missing.
    """
    differences = list_differences(first_result.protocol, second_result.protocol)
    if differences:
        raise DataError(
            f"{first_result.detector} and {second_result.detector} were evaluated under different "
            "protocols: " + "; ".join(differences),
            code="forensics.protocol",
            where=f"{first_result.protocol.digest} and {second_result.protocol.digest}",
            expected="one protocol",
            next="score both again under the same protocol",
        )
    names = [row[0] for row in first_result.scores]
    if names != [row[0] for row in second_result.scores]:
        raise _invalid_scores(
            "the two detectors did not score the same items", "scores for the same ids"
        )
    labels = [row[1] for row in first_result.scores]
    first, second = ([row[2] for row in result.scores] for result in (first_result, second_result))
    test = run_delong_test(labels, first, second)
    if test is None:
        raise _invalid_scores("one class has fewer than two items", "two of each class")
    groups = [row[3] for row in first_result.scores]
    low, high = _bound_difference(labels, first, second, groups)
    return DetectorComparison(test[0], test[1], low, high, len(labels))


def read_scores(path: Path, *, column: str = "score") -> dict[str, float]:
    """Read scores by id from CSV or JSON Lines; empty and non-finite scores become NaN.

    Raises:
        DataError: If a column is missing, or an id is repeated.
    """
    try:
        text = require_file(path).read_text(encoding="utf-8-sig")
        rows = (
            list(csv.DictReader(io.StringIO(text)))
            if path.suffix == ".csv"
            else [load_json(line) for line in text.split("\n") if line.strip()]
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _invalid_scores(f"{path} cannot be read: {error}", "CSV or JSON Lines") from error
    scores: dict[str, float] = {}
    for number, row in enumerate(rows, start=1):
        if "id" not in row or column not in row:
            raise _invalid_scores(
                f"{path.name} row {number} has no id or {column}", f"id and {column}"
            )
        if str(row["id"]) in scores:
            raise _invalid_scores(f"{path.name} repeats the id {row['id']!r}", "one score per id")
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        scores[str(row["id"])] = value
    return scores


def read_evaluation(path: Path) -> DetectorEvaluation:
    """Read the evaluation of a benchmark job, from its folder or ``result.json``.

    Raises:
        DataError: If the file is not an evaluation, or its protocol was modified.
    """
    path = path / "output" / "result.json" if path.is_dir() else path
    try:
        data = load_json(require_file(path).read_text(encoding="utf-8"))
        protocol = EvaluationProtocol.from_json(data["protocol"])
        evaluation = DetectorEvaluation(
            data["detector"],
            protocol,
            {row["name"]: Metric.from_json(row) for row in data["metrics"]},
            {name: Metric.from_json(row) for name, row in data["by_generator"].items()},
            data["threshold"],
            data["missing"],
            tuple((row[0], row[1], row[2], row[3]) for row in data["scores"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _invalid_scores(
            f"{path} is not an evaluation: {error}",
            "the result.json of a job of kind forensics.benchmark with scores",
        ) from error
    if data["protocol_digest"] != protocol.digest:
        raise _invalid_scores(
            f"the protocol of {path} was modified after the measurement", "the file as written"
        )
    return evaluation


def _select_split(items: Sequence[ManifestItem], split: str) -> list[ManifestItem]:
    selected = [item for item in items if not split or item.split == split]
    if not selected:
        known = sorted({item.split or "none" for item in items})
        raise _invalid_scores(f"the split {split!r} has no rows", f"one of: {', '.join(known)}")
    return selected


def _rows(
    items: Sequence[ManifestItem], scores: Mapping[str, float], protocol: EvaluationProtocol
) -> tuple[list[_ScoredUnit], int]:
    """Return the scored units (a clip's frames pooled: video level), and how many lack a score."""
    frames: dict[str, list[tuple[ManifestItem, float]]] = {}
    missing = [item for item in items if not math.isfinite(scores.get(item.id, math.nan))]
    if missing and protocol.no_score == "refuse":
        raise _invalid_scores(
            f"{len(missing)} of {len(items)} items have no score; the first is {missing[0].id!r}",
            "a finite score for every item of the split",
        )
    if missing and len(missing) == len(items) and protocol.no_score == "drop":
        raise _invalid_scores(
            f"none of {len(items)} items has a score", "the manifest's ids in the table"
        )
    absent = {item.id for item in missing}
    for item in items:
        if item.id not in absent:
            frames.setdefault(_name(item, protocol), []).append((item, float(scores[item.id])))
        elif protocol.no_score == "half":
            frames.setdefault(_name(item, protocol), []).append((item, 0.5))
    rows = []
    for name, members in frames.items():
        labels = {item.label for item, _ in members}
        if len(labels) > 1:
            raise DataError(
                f"the clip {name} holds real and fake frames",
                code="forensics.mixed-group",
                expected="one label per clip",
                next="score by frame, or name clips by dataset, generator and clip",
            )
        first = members[0][0]
        group = f"{first.dataset}/{first.source}" if first.source else "/".join(first.unit)
        score = aggregate_frame_scores([score for _, score in members], protocol.aggregation)
        rows.append((name, labels.pop(), score, group))
    return rows, len(missing)


def _name(item: ManifestItem, protocol: EvaluationProtocol) -> str:
    return item.id if protocol.unit == "frame" else "/".join(item.unit)


def _bound_difference(
    labels: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[str],
) -> tuple[float, float]:
    """Return the interval of the difference of areas, both on the same resamples of groups."""
    gaps = bootstrap_areas(labels, first, groups, 0) - bootstrap_areas(labels, second, groups, 0)
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) == 0:
        return math.nan, math.nan
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


def _figure(metric: Metric) -> str:
    if math.isnan(metric.value):
        return f"none ({metric.note})"
    if math.isnan(metric.low):
        return f"{metric.value:.4f} ({metric.note}, n {metric.n})"
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}], n {metric.n}"


def _invalid_scores(problem: str, expected: str) -> DataError:
    return DataError(
        problem,
        code="forensics.scores",
        expected=expected,
        next="check the table of scores and the manifest",
    )
