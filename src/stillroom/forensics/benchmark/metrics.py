"""Detection metrics with group-bootstrap intervals: AUC, EER, TPR at FPR, Brier score, ECE.

Scores of frames become those of clips in ``forensics.aggregation``. DeepfakeBench has most of them
in ``get_test_metrics``.

Labels are 1 for forged, and scores higher for forged. Where one class is missing, a metric is None,
never 0. Frames of one clip are not independent: intervals resample whole groups (clips, or people).

Groups are drawn with replacement, 2000 times; all metrics are computed from the same resamples, by
weights on the items in order of score, so that thousands of resamples of ten thousand items take
seconds.

Source: Hanley and McNeil 1982 (the area as a rank statistic); DeLong et al. 1988, "Comparing the
Areas Under Two or More Correlated Receiver Operating Characteristic Curves", in the fast form of
Sun and Xu 2014, IEEE SPL 21(11); Guo et al. 2017, arXiv:1706.04599 (calibration error); Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8 (clusters as units).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.evaluate import Metric

__all__ = [
    "FALSE_POSITIVE_RATES",
    "RocCurve",
    "bootstrap_areas",
    "bootstrap_auc",
    "brier_score",
    "expected_calibration_error",
    "measure_scores",
    "roc_auc",
    "roc_curve",
    "run_delong_test",
    "select_threshold",
]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
CALIBRATION_BINS = 15
_BLOCK = 2**21


@dataclass(frozen=True, eq=False)
class RocCurve:
    """False and true positive rates at every threshold, from the strictest; both start at 0.

    ``thresholds[0]`` is infinite; at ``thresholds[k]`` an equal score counts as forged.
    """

    false_rates: Floats
    true_rates: Floats
    thresholds: Floats


def roc_curve(labels: Sequence[int] | Labels, scores: Sequence[float] | Floats) -> RocCurve | None:
    """Return the ROC curve with one vertex per distinct score; None if a class is missing.

    Raises:
        DataError: If lengths differ, a label is not 0 or 1, or a score is not finite.
    """
    table = _sort_classes(labels, scores)
    if table is None:
        return None
    true, false = table.rates(table.ones)
    return RocCurve(false[0], true[0], np.concatenate([[np.inf], table.values[table.ends]]))


def roc_auc(labels: Sequence[int] | Labels, scores: Sequence[float] | Floats) -> float | None:
    """Return the share of pairs in which the forged item scores higher; ties count half."""
    table = _sort_classes(labels, scores)
    return None if table is None else float(table.areas(table.ones)[0])


def brier_score(labels: Sequence[int] | Labels, chances: Sequence[float] | Floats) -> float:
    """Return the mean squared error of probabilities.

    Raises:
        DataError: If a probability is outside of [0, 1].
    """
    truth, values = _check(labels, chances, bounded=True)
    return float(((values - truth) ** 2).mean())


def expected_calibration_error(
    labels: Sequence[int] | Labels,
    chances: Sequence[float] | Floats,
    *,
    equal_mass: bool = False,
    bins: int = CALIBRATION_BINS,
) -> float:
    """Return the expected calibration error: the mean gap of predicted and observed frequency.

    Raises:
        DataError: If a probability is outside of [0, 1].
    """
    truth, values = _check(labels, chances, bounded=True)
    if equal_mass:
        bin_index = np.empty(len(values), dtype=np.int64)
        bin_index[np.argsort(values, kind="stable")] = np.arange(len(values)) * bins // len(values)
    else:
        bin_index = np.minimum((values * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_index, weights=values - truth, minlength=bins)
    return float(np.abs(gaps).sum() / len(values))


def bootstrap_auc(
    labels: Sequence[int] | Labels,
    scores: Sequence[float] | Floats,
    groups: Sequence[object],
    *,
    name: str = "auc",
    resamples: int = 2000,
    seed: int = 0,
) -> Metric:
    """Return the area under the curve with a 95 % percentile interval over resampled groups."""
    truth, values = _check(labels, scores)
    table = _SortedScores(truth, values)
    resampler = _Resampler(table, groups, resamples, seed)
    if _counts(truth) is None:
        return Metric(name, math.nan, n=len(values), note="one class is missing")
    areas = np.concatenate([table.areas(weights) for weights in resampler])
    return _metric(name, float(table.areas(table.ones)[0]), areas, resampler.count)


def run_delong_test(
    labels: Sequence[int] | Labels,
    first_scores: Sequence[float] | Floats,
    second_scores: Sequence[float] | Floats,
) -> tuple[float, float] | None:
    """Return the difference of two areas on the same items and its p-value, by DeLong's test.

    None if a class is missing or has a single item.
    """
    truth, first = _check(labels, first_scores)
    _, second = _check(labels, second_scores)
    counts = _counts(truth)
    if counts is None or min(counts) < 2:
        return None
    parts = [_placements(truth, values) for values in (first, second)]
    areas = [float(forged.mean()) for forged, _ in parts]
    spread = 0.0
    for side, count in ((0, counts[1]), (1, counts[0])):
        gap = parts[0][side] - parts[1][side]
        spread += float(gap.var(ddof=1)) / count
    difference = areas[0] - areas[1]
    if spread <= 0:
        return difference, 1.0 if difference == 0 else 0.0
    z = abs(difference) / math.sqrt(spread)
    return difference, 2 * (1 - NormalDist().cdf(z))


def _placements(truth: Labels, values: Floats) -> tuple[Floats, Floats]:
    """Return for each forged item the share of real items below it, and the reverse for real."""
    forged, real = values[truth == 1], values[truth == 0]
    ranks = _ranks(values)
    up = (ranks[truth == 1] - _ranks(forged)) / len(real)
    down = 1 - (ranks[truth == 0] - _ranks(real)) / len(forged)
    return up, down


def _ranks(values: Floats) -> Floats:
    """Return ranks from 1; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def _counts(truth: Labels) -> tuple[int, int] | None:
    forged = int(truth.sum())
    return None if forged in {0, len(truth)} else (len(truth) - forged, forged)


def _check(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats, *, bounded: bool = False
) -> tuple[Labels, Floats]:
    truth = np.asarray(labels, dtype=np.float64).reshape(-1)
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(truth) != len(values):
        raise _length_mismatch(len(truth), len(values))
    if not np.isin(truth, (0, 1)).all():
        raise _invalid_scores("a label is neither 0 nor 1", "0 for real, 1 for forged")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise _invalid_scores(
            f"score {index} is {values[index]}",
            "finite scores; missing scores are counted separately",
        )
    if bounded and (len(values) == 0 or values.min() < 0 or values.max() > 1):
        raise _invalid_scores(
            "a probability is outside of 0 to 1, or there is none", "probabilities, not raw scores"
        )
    return truth.astype(np.int64), values


def _length_mismatch(first: int, second: int) -> DataError:
    return _invalid_scores(
        f"there are {first} and {second} values", "one label, score and group per item"
    )


def _invalid_scores(problem: str, expected: str) -> DataError:
    return DataError(
        problem,
        code="forensics.scores",
        expected=expected,
        next="check the rows that the detector could not score",
    )


FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_0.1": 0.001}
_LEVELS = (0.025, 0.975)


def measure_scores(
    labels: Sequence[int],
    scores: Sequence[float],
    groups: Sequence[object],
    *,
    threshold: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure area, average precision, equal error rate, and true positive rates at 1 % and 0.1 %.

    Brier score and calibration error (equal width and equal mass) are included if all scores are in
    [0, 1]; balanced accuracy if a threshold is given.

    Raises:
        DataError: If lengths differ, or a score is not finite.
    """
    truth, values = _check(labels, scores)
    table = _SortedScores(truth, values)
    resampler = _Resampler(table, groups, resamples, seed)
    metrics, count = table.measure(table.ones, threshold), resampler.count
    if _counts(truth) is None:
        note = "one class is missing"
        return {name: Metric(name, math.nan, n=count, note=note) for name in metrics}
    draws = [table.measure(weights, threshold) for weights in resampler]
    return {
        name: _metric(name, float(value[0]), np.concatenate([draw[name] for draw in draws]), count)
        for name, value in metrics.items()
    }


def bootstrap_areas(
    labels: Sequence[int],
    scores: Sequence[float],
    groups: Sequence[object],
    seed: int,
    *,
    resamples: int = 2000,
) -> Floats:
    """Return the area for each resample of groups, (resamples,); draws depend on the seed alone."""
    table = _SortedScores(*_check(labels, scores))
    resampler = _Resampler(table, groups, resamples, seed)
    return np.concatenate([_trapezoid(*table.rates(weights)) for weights in resampler])


def select_threshold(labels: Sequence[int], scores: Sequence[float]) -> float | None:
    """Return the threshold of the best balanced accuracy; None if none is better than chance.

    It is None also if a class is missing. Choose a threshold on other items than it is tested on.
    """
    curve = roc_curve(labels, scores)
    if curve is None:
        return None
    best = int(np.argmax(curve.true_rates - curve.false_rates))
    return float(curve.thresholds[best]) if best else None  # the first, infinity, finds nothing


class _SortedScores:
    """Items in falling order of score, and values shared by all resamples.

    Weights are (draws, items) in that order; all results have one row or value per draw.
    """

    def __init__(self, truth: Labels, values: Floats) -> None:
        self.order = np.argsort(-values, kind="stable")
        self.truth, self.values = truth[self.order], values[self.order]
        self.ends = np.flatnonzero(np.append(np.diff(self.values) != 0, True))
        self.bounded = bool(len(values)) and values.min() >= 0 and values.max() <= 1
        self.ones = np.ones((1, len(values)))

    def _count(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weight of fakes and of reals at or above each distinct score."""
        fakes = np.cumsum(weights * self.truth, axis=1)[:, self.ends]
        return fakes, np.cumsum(weights * (1 - self.truth), axis=1)[:, self.ends]

    def rates(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return true and false positive rates from the strictest threshold; both start at 0."""
        start = np.zeros((len(weights), 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            true, false = (
                np.hstack([start, counts / counts[:, -1:]]) for counts in self._count(weights)
            )
        return true, false

    def areas(self, weights: Floats) -> Floats:
        """Return the areas as shares of pairs, correctly rounded for integer weights."""
        fakes, reals = self._count(weights)
        down = np.diff(reals, axis=1, prepend=0)
        pairs = np.diff(fakes, axis=1, prepend=0) * (reals[:, -1:] - reals + down / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(pairs.sum(axis=1) / (fakes[:, -1] * reals[:, -1]))

    def measure(self, weights: Floats, threshold: float | None = None) -> dict[str, Floats]:
        """Return every metric for each row of weights."""
        (fakes, reals), (true, false) = self._count(weights), self.rates(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = fakes / (fakes + reals)
        steps = np.diff(true, axis=1)
        figures = {
            "auc": _trapezoid(true, false),
            "ap": np.where(steps > 0, steps * precision, 0.0).sum(axis=1),
            "eer": _equal_error_rate(true, false),
        }
        for name, max_rate in FALSE_POSITIVE_RATES.items():
            # The highest true positive rate within a false positive rate.
            figures[name] = np.asarray(np.where(false <= max_rate + 1e-12, true, 0.0).max(axis=1))
        has_both = np.isfinite(true[:, -1] + false[:, -1])
        figures = {name: np.where(has_both, value, np.nan) for name, value in figures.items()}
        if threshold is not None:
            is_over = self.values >= threshold
            with np.errstate(divide="ignore", invalid="ignore"):
                hits = weights @ (self.truth * is_over) / (weights @ self.truth)
                passes = weights @ ((1 - self.truth) * ~is_over) / (weights @ (1 - self.truth))
            figures["balanced_accuracy"] = np.asarray((hits + passes) / 2)
        if self.bounded:
            total = weights.sum(axis=1)
            figures["brier"] = weights @ (self.values - self.truth) ** 2 / total
            figures["ece"] = self._gap(
                weights, np.minimum(self.values * CALIBRATION_BINS, CALIBRATION_BINS - 1)
            )
            bin_index = np.arange(len(self.values)) * CALIBRATION_BINS // len(self.values)
            figures["ece_equal_mass"] = self._gap(weights, bin_index.astype(np.float64))
        return figures

    def _gap(self, weights: Floats, bin_index: Floats) -> Floats:
        member = bin_index.astype(np.int64)[:, None] == np.arange(CALIBRATION_BINS)
        gaps = weights @ (member * (self.values - self.truth)[:, None])
        return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


class _Resampler:
    """Blocks of weights, (draws, items): the number of draws of each item's group.

    Groups are numbered by first occurrence, and the block size depends on the number of items
    alone, so that a seed draws the same groups for any scores.
    """

    def __init__(
        self, table: _SortedScores, groups: Sequence[object], resamples: int, seed: int
    ) -> None:
        if len(groups) != len(table.values):
            raise _length_mismatch(len(groups), len(table.values))
        numbers = {group: index for index, group in enumerate(dict.fromkeys(groups))}
        self.count, self._resamples, self._seed = len(numbers), resamples, seed
        self._member = np.array([numbers[group] for group in groups], np.int64)[table.order]

    def __iter__(self) -> Iterator[Floats]:
        rng, size = np.random.default_rng(self._seed), max(_BLOCK // len(self._member), 1)
        chances = np.full(self.count, 1 / self.count)
        for begin in range(0, self._resamples, size):
            times = rng.multinomial(self.count, chances, min(size, self._resamples - begin))
            yield times[:, self._member].astype(np.float64)


def _sort_classes(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats
) -> _SortedScores | None:
    """Return the scores in order; None if a class is missing."""
    truth, values = _check(labels, scores)
    return None if _counts(truth) is None else _SortedScores(truth, values)


def _trapezoid(true: Floats, false: Floats) -> Floats:
    """Return the area under each curve."""
    heights = (true[:, 1:] + true[:, :-1]) / 2
    return np.asarray((heights * np.diff(false, axis=1)).sum(axis=1))


def _equal_error_rate(true: Floats, false: Floats) -> Floats:
    """Return the rate where misses equal false alarms, interpolated between adjacent vertices."""
    gap = false - (1 - true)
    crossing = np.argmax(gap >= 0, axis=1)
    rows = np.arange(len(gap))
    previous = np.maximum(crossing - 1, 0)
    low, high = gap[rows, previous], gap[rows, crossing]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, -low / (high - low), 0.0)
    return np.asarray(
        false[rows, previous] + share * (false[rows, crossing] - false[rows, previous])
    )


def _metric(name: str, value: float, resampled: Floats, count: int) -> Metric:
    finite = resampled[np.isfinite(resampled)]
    if count < 2 or len(finite) < len(resampled) // 2:
        return Metric(name, value, n=count, note="too few groups for an interval")
    low, high = np.quantile(finite, _LEVELS)
    return Metric(name, value, float(low), float(high), count)
