"""Whether several raters agree, and what a rater's scale is worth in people's.

Knows ratings, not who gave them. Missing ratings are None and are left out, never guessed.

Sources: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; Cohen 1968, "Weighted
kappa"; Barlow et al. 1972 (pool adjacent violators, isotonic regression); Zadrozny and Elkan 2002
(isotonic calibration).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate.metrics import Floats

__all__ = ["IsotonicScale", "Level", "cohen_kappa", "krippendorff_alpha"]

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    ratings: Sequence[Sequence[float | None]], level: Level = "interval"
) -> float:
    """Return Krippendorff's alpha: 1 is perfect agreement, 0 what chance gives, below 0 worse.

    Args:
        ratings: One row a unit, one column a rater; None where a rater said nothing. Units that
            fewer than two have rated do not count.
        level: How ratings differ: ``nominal`` (equal or not), ``ordinal`` (by rank), ``interval``.

    Returns:
        Not a number where no two ratings can be paired, or all of them are the same.
    """
    units = [[value for value in row if value is not None] for row in ratings]
    units = [row for row in units if len(row) > 1]
    values = sorted({value for row in units for value in row})
    if len(values) < 2:
        return math.nan
    place = {value: at for at, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for row in units:
        counts = np.bincount([place[value] for value in row], minlength=len(values)).astype(float)
        pairs = np.outer(counts, counts) - np.diag(counts)
        coincidences += pairs / (len(row) - 1)
    totals = coincidences.sum(1)
    distance = _distances(np.asarray(values, dtype=float), totals, level)
    expected = float(np.outer(totals, totals).ravel() @ distance.ravel())
    observed = float(coincidences.ravel() @ distance.ravel())
    return 1 - (totals.sum() - 1) * observed / expected if expected else math.nan


def _distances(
    values: Floats,
    totals: Floats,
    level: Level,
) -> Floats:
    if level == "nominal":
        return np.asarray(values[:, None] != values[None, :], dtype=float)
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)
    cumulative = np.cumsum(totals) - totals / 2  # the middle rank of each value
    return np.asarray((cumulative[:, None] - cumulative[None, :]) ** 2)


def cohen_kappa(
    first: Sequence[float],
    second: Sequence[float],
    weights: Literal["none", "linear", "quadratic"] = "none",
) -> float:
    """Return Cohen's kappa of two raters; weighted, what is nearly equal counts for part.

    Args:
        first: One rater's ratings.
        second: The other's, of the same units in the same order.
        weights: By how far apart two ratings of ``linear`` or ``quadratic`` kappa are counted.

    Returns:
        Not a number where both always say the same one thing.

    Raises:
        DataError: If the lists differ in length or are empty.
    """
    if len(first) != len(second) or not first:
        raise DataError(
            f"{len(first)} and {len(second)} ratings cannot be paired",
            code="metric.unpaired",
            expected="as many of one rater as of the other, one or more",
            next="compare ratings of the same units",
        )
    values = sorted({*first, *second})
    place = {value: at for at, value in enumerate(values)}
    table = np.zeros((len(values), len(values)))
    for one, other in zip(first, second, strict=True):
        table[place[one], place[other]] += 1
    table /= table.sum()
    scale = np.asarray(values, dtype=float)
    gap = np.abs(scale[:, None] - scale[None, :])
    cost = {"none": (gap > 0).astype(float), "linear": gap, "quadratic": gap**2}[weights]
    chance = np.outer(table.sum(1), table.sum(0))
    expected = float((cost * chance).sum())
    return 1 - float((cost * table).sum()) / expected if expected else math.nan


@dataclass(frozen=True, slots=True)
class IsotonicScale:
    """A rising step curve from a rater's scores to people's, straight between its knots."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> IsotonicScale:
        """Fit by pooling adjacent violators: the least squares of all curves that never fall.

        Args:
            scores: The rater's.
            labels: People's, of the same units.

        Raises:
            DataError: If the lists differ in length, or hold fewer than two units.
        """
        if len(scores) != len(labels) or len(scores) < 2:
            raise DataError(
                f"{len(scores)} scores and {len(labels)} labels give no curve",
                code="metric.unpaired",
                expected="two or more of each, one label a score",
                next="label more of what was judged",
            )
        pooled: dict[float, list[float]] = {}
        for score, label in zip(scores, labels, strict=True):
            pooled.setdefault(float(score), []).append(float(label))
        blocks: list[list[float]] = []  # mean, weight, first score, last score
        for score in sorted(pooled):
            held = pooled[score]
            blocks.append([math.fsum(held) / len(held), len(held), score, score])
            while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
                mean, weight, _, last = blocks.pop()
                before = blocks[-1]
                both = before[1] + weight
                before[0] = (before[0] * before[1] + mean * weight) / both
                before[1], before[3] = both, last
        knots, values = [], []
        for mean, _, low, high in blocks:
            for end in dict.fromkeys((low, high)):
                knots.append(end)
                values.append(mean)
        return cls(tuple(knots), tuple(values))

    def apply(self, score: float) -> float:
        """Return what people would say where the rater says ``score``; level beyond the ends."""
        return float(np.interp(score, self.knots, self.values))
