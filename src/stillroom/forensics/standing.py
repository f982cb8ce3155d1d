"""What a table of scores is worth on a benchmark: figures with intervals, under one protocol.

Scores come from anywhere: a table of ids and scores is enough. Frames and clips are both reported
where a manifest has clips; every generator is also measured alone against all real items. A
threshold is chosen on the validation split, never on what is tested.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.intervals import draw_areas, measure_scores, pick_threshold
from stillroom.forensics.items import Item
from stillroom.forensics.measures import compare_areas
from stillroom.forensics.protocol import Protocol, differences, open_protocol
from stillroom.forensics.splits import leave_one_out
from stillroom.jobs import atomic_write

__all__ = [
    "Comparison",
    "Standing",
    "compare_standings",
    "read_scores",
    "read_standing",
    "score_folds",
    "score_items",
    "write_standing",
]

_VERSION = 1
_TOP_SHARE = 0.2


@dataclass(frozen=True)
class Standing:
    """Figures of one detector under one protocol.

    ``metrics`` are over all items, ``by_generator`` of each generator's fakes against all real
    items; ``scores`` are (unit, label, score, group), kept so that two detectors can be compared on
    the same items. ``missing`` items had no score.
    """

    detector: str
    protocol: Protocol
    metrics: Mapping[str, Metric]
    by_generator: Mapping[str, Metric]
    threshold: float | None
    missing: int
    scores: tuple[tuple[str, int, float, str], ...] = field(repr=False, default=())

    def lines(self) -> list[str]:
        """Return the figures as a user reads them."""
        lines = [
            f"{self.detector}: protocol {self.protocol.digest}, {len(self.scores)} "
            f"{self.protocol.unit}s, {self.missing} without a score"
        ]
        lines += [f"  {_say(metric)}" for metric in self.metrics.values()]
        lines += [f"  auc on {name}: {_figure(one)}" for name, one in self.by_generator.items()]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": _VERSION,
            "kind": "forensics-standing",
            "detector": self.detector,
            "protocol_digest": self.protocol.digest,
            "protocol": self.protocol.to_json(),
            "metrics": [metric.to_json() for metric in self.metrics.values()],
            "by_generator": {name: one.to_json() for name, one in self.by_generator.items()},
            "threshold": self.threshold,
            "missing": self.missing,
            "scores": [list(row) for row in self.scores],
        }


@dataclass(frozen=True)
class Comparison:
    """Two detectors on the same items: the difference of their areas and its p-value (DeLong).

    ``low`` and ``high`` bound the difference over resampled groups: items of one clip or source are
    not independent, and DeLong's test takes them as if they were.
    """

    difference: float
    p_value: float
    low: float
    high: float
    n: int

    def line(self) -> str:
        """Return the finding as one line."""
        said = f"difference of areas {self.difference:+.4f}, 95 % over groups {self.low:+.4f} to "
        said += f"{self.high:+.4f}, DeLong p = {self.p_value:.4g}, n {self.n}"
        if self.low <= 0 <= self.high:
            return f"{said}: no difference shown"
        return said


def score_items(
    items: Sequence[Item],
    scores: Mapping[str, float],
    *,
    detector: str = "detector",
    resamples: int = 2000,
    seed: int = 0,
    **settings: Any,
) -> Standing:
    """Measure a table of scores.

    Args:
        items: Rows of the manifest, of all splits.
        scores: Score by id, higher for fake.
        detector: Its name.
        resamples: Draws of groups for intervals.
        seed: Of the draws.
        settings: The protocol's, as ``unit``, ``split``, ``aggregation``, ``no_score``.

    Raises:
        DataError: If scores are missing and the protocol does not allow for it, or a split is
            empty.
    """
    protocol = open_protocol(items, **settings)
    tested = _of_split(items, protocol.split)
    rows, missing = _rows(tested, scores, protocol)
    chosen = [item for item in items if item.split == protocol.threshold_from]
    threshold = None
    if chosen and protocol.threshold_from != protocol.split:
        known, _ = _rows(chosen, scores, protocol)
        threshold = pick_threshold([row[1] for row in known], [row[2] for row in known])
    metrics = measure_scores(
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[3] for row in rows],
        threshold=threshold,
        resamples=resamples,
        seed=seed,
    )
    made_by = {_name(item, protocol): item.generator for item in tested}
    by_generator = {}
    for generator in sorted({item.generator for item in tested if item.label}):
        some = [row for row in rows if not row[1] or made_by[row[0]] == generator]
        by_generator[generator or "not named"] = measure_scores(
            [row[1] for row in some],
            [row[2] for row in some],
            [row[3] for row in some],
            resamples=resamples,
            seed=seed,
        )["auc"]
    return Standing(
        detector, protocol, metrics, by_generator, threshold, missing, tuple(sorted(rows))
    )


def score_folds(
    items: Sequence[Item], scores: Mapping[str, float], by: str, *, seed: int = 0
) -> dict[str, Metric]:
    """Return the area on what each fold of ``leave_one_out`` holds out.

    That the scores are those of a detector trained on the fold's own training rows is for who made
    them to see to; where one detector scored all, a figure says how it does on that part alone.

    Raises:
        DataError: If there is nothing to leave out, or an item has no score.
    """
    if by not in {"generator", "source"}:
        raise _refused(f"there is no leaving out by {by!r}", "generator or source")
    found = {}
    for fold in leave_one_out(items, "generator" if by == "generator" else "source", seed=seed):
        rows, _ = _rows(fold.test, scores, Protocol(items="", split=""))
        if rows:
            labels, said = [row[1] for row in rows], [row[2] for row in rows]
            groups = [row[3] for row in rows]
            found[fold.name] = measure_scores(labels, said, groups, seed=seed)["auc"]
    return found


def compare_standings(ours: Standing, theirs: Standing, *, seed: int = 0) -> Comparison:
    """Compare two detectors measured under one protocol.

    Raises:
        DataError: If the protocols differ, the same items were not scored, or a class is missing.
    """
    apart = differences(ours.protocol, theirs.protocol)
    if apart:
        raise DataError(
            f"{ours.detector} and {theirs.detector} were measured under different protocols: "
            + "; ".join(apart),
            code="forensics.protocol",
            where=f"{ours.protocol.digest} and {theirs.protocol.digest}",
            expected="one protocol",
            next="score both again under the same",
        )
    names = [row[0] for row in ours.scores]
    if names != [row[0] for row in theirs.scores]:
        raise _refused("the two detectors did not score the same items", "scores for the same ids")
    labels = [row[1] for row in ours.scores]
    first, second = ([row[2] for row in one.scores] for one in (ours, theirs))
    found = compare_areas(labels, first, second)
    if found is None:
        raise _refused("one class has fewer than two items", "two of each class")
    groups = [row[3] for row in ours.scores]
    low, high = _bound_difference(labels, first, second, groups, seed)
    return Comparison(found[0], found[1], low, high, len(labels))


def read_scores(path: Path, *, column: str = "score") -> dict[str, float]:
    """Read scores by id from CSV or JSON Lines; empty and non-finite ones are left to be missing.

    Args:
        path: A file with a column ``id`` and one of scores.
        column: Its name, as ``prob_x``.

    Raises:
        DataError: If the columns are not there, or an id comes twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            list(csv.DictReader(text.splitlines()))
            if path.suffix == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _refused(f"{path} cannot be read: {error}", "CSV or JSON Lines") from error
    found: dict[str, float] = {}
    for number, row in enumerate(rows, start=1):
        if "id" not in row or column not in row:
            raise _refused(f"{path.name} row {number} has no id or {column}", f"id and {column}")
        if str(row["id"]) in found:
            raise _refused(f"{path.name} has the id {row['id']!r} twice", "one score an id")
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        found[str(row["id"])] = value
    return found


def write_standing(path: Path, standing: Standing) -> None:
    """Write figures, protocol and scores as JSON."""
    with atomic_write(path) as file:
        json.dump(standing.to_json(), file, ensure_ascii=False, indent=1)


def read_standing(path: Path) -> Standing:
    """Read what ``write_standing`` wrote.

    Raises:
        DataError: If it is something else, or the protocol was changed since.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        protocol = Protocol.from_json(data["protocol"])
        standing = Standing(
            data["detector"],
            protocol,
            {row["name"]: Metric.from_json(row) for row in data["metrics"]},
            {name: Metric.from_json(row) for name, row in data["by_generator"].items()},
            data["threshold"],
            data["missing"],
            tuple((row[0], row[1], row[2], row[3]) for row in data["scores"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _refused(
            f"{path} holds no figures of a detector: {error}", "JSON of score"
        ) from error
    if data["protocol_digest"] != protocol.digest:
        raise _refused(f"{path}'s protocol is not the one that it was measured under", "as written")
    return standing


def _of_split(items: Sequence[Item], split: str) -> list[Item]:
    found = [item for item in items if not split or item.split == split]
    if not found:
        known = sorted({item.split or "none" for item in items})
        raise _refused(f"no row is of the split {split!r}", f"one of: {', '.join(known)}")
    return found


def _rows(
    items: Sequence[Item], scores: Mapping[str, float], protocol: Protocol
) -> tuple[list[tuple[str, int, float, str]], int]:
    """Return unit, label, score and group of what is judged, and how many items had no score."""
    frames: dict[str, list[tuple[Item, float]]] = {}
    missing = [item for item in items if not math.isfinite(scores.get(item.id, math.nan))]
    if missing and protocol.no_score == "refuse":
        raise _refused(
            f"{len(missing)} of {len(items)} items have no score; the first is {missing[0].id!r}",
            "a finite score for every item of the split",
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
                expected="one label a clip",
                next="judge by frame, or name clips by dataset, generator and clip",
            )
        first = members[0][0]
        group = f"{first.dataset}/{first.source}" if first.source else name
        score = _aggregate([score for _, score in members], protocol.aggregation)
        rows.append((name, labels.pop(), score, group))
    return rows, len(missing)


def _name(item: Item, protocol: Protocol) -> str:
    return item.id if protocol.unit == "frame" else "/".join(item.unit)


def _aggregate(scores: Sequence[float], how: str) -> float:
    if how == "max":
        return max(scores)
    if how == "top":
        return float(np.mean(sorted(scores)[-max(math.ceil(_TOP_SHARE * len(scores)), 1) :]))
    return float(np.mean(scores))


def _bound_difference(
    labels: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[str],
    seed: int,
) -> tuple[float, float]:
    """Return the interval of the difference of areas, both on the same draws of groups."""
    gaps = draw_areas(labels, first, groups, seed) - draw_areas(labels, second, groups, seed)
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


def _say(metric: Metric) -> str:
    return f"{metric.name}: {_figure(metric)}"


def _refused(what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.scores",
        expected=expected,
        next="look at the table of scores and at the manifest",
    )
