"""Detection metrics with group-bootstrap intervals: AUC, EER, TPR at FPR, and calibration.

A label is 1 for forged, a score is higher for forged. Where one class is missing, a figure is None,
never 0. Frames of one clip are not independent: intervals resample whole groups (clips, or people).

Source: Hanley and McNeil 1982 (the area as a rank statistic); DeLong et al. 1988, "Comparing the
Areas Under Two or More Correlated Receiver Operating Characteristic Curves", in the fast form of
Sun and Xu 2014, IEEE SPL 21(11); Guo et al. 2017, arXiv:1706.04599 (calibration error).

Groups are drawn with replacement, 2000 times; every figure is computed from the same draws by
weights on the items in order of score, so that thousands of draws over ten thousand items take
seconds.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8 (clusters as
units); figures as in ``measures``.
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
    "area_under_curve",
    "average_precision",
    "bootstrap_areas",
    "bootstrap_auc",
    "brier_score",
    "compute_tpr_at_fpr",
    "equal_error_rate",
    "expected_calibration_error",
    "measure_scores",
    "pool_groups",
    "roc_curve",
    "run_delong_test",
    "select_threshold",
]


Floats = npt.NDArray[np.float64]


Labels = npt.NDArray[np.int64]


CALIBRATION_BINS = 15


_BLOCK = 2**22


@dataclass(frozen=True, eq=False)
class RocCurve:
    """False and true positive rate at every threshold, from the strictest; both begin at 0.

    ``thresholds[0]`` is infinite; at ``thresholds[k]`` a score that is equal counts as forged.
    """

    false_rates: Floats
    true_rates: Floats
    thresholds: Floats


def roc_curve(labels: Sequence[int] | Labels, scores: Sequence[float] | Floats) -> RocCurve | None:
    """Return the curve with one vertex for each distinct score; None if a class is missing.

    Raises:
        DataError: If lengths differ, a label is not 0 or 1, or a score is not finite.
    """
    truth, said = _check(labels, scores)
    counts = _counts(truth)
    if counts is None:
        return None
    order = np.argsort(-said, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.flatnonzero(np.append(np.diff(said[order]) != 0, True))
    true = np.concatenate([[0.0], hits[ends] / counts[1]])
    false = np.concatenate([[0.0], (ends + 1 - hits[ends]) / counts[0]])
    return RocCurve(false, true, np.concatenate([[np.inf], said[order][ends]]))


def area_under_curve(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats
) -> float | None:
    """Return the share of pairs in which the forged one scores higher, ties counting half."""
    truth, said = _check(labels, scores)
    counts = _counts(truth)
    if counts is None:
        return None
    ranks = _ranks(said)
    above = float(ranks[truth == 1].sum()) - counts[1] * (counts[1] + 1) / 2
    return above / (counts[0] * counts[1])


def average_precision(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats
) -> float | None:
    """Return precision averaged over the steps of recall, without interpolation; None likewise."""
    truth, said = _check(labels, scores)
    counts = _counts(truth)
    if counts is None:
        return None
    order = np.argsort(-said, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.flatnonzero(np.append(np.diff(said[order]) != 0, True))
    precision, recall = hits[ends] / (ends + 1), hits[ends] / counts[1]
    return float((np.diff(np.concatenate([[0.0], recall])) * precision).sum())


def equal_error_rate(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats
) -> float | None:
    """Return where misses and false alarms are equally frequent, interpolated on the curve.

    The nearest vertex is not enough: with few distinct scores it can say 0 of scores that tell
    nothing.
    """
    curve = roc_curve(labels, scores)
    if curve is None:
        return None
    gap = curve.false_rates - (1 - curve.true_rates)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    if gap[after] == 0:
        return float(curve.false_rates[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    low, high = curve.false_rates[after - 1], curve.false_rates[after]
    return float(low + share * (high - low))


def compute_tpr_at_fpr(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats, false_rate: float
) -> float | None:
    """Return the true positive rate at the loosest threshold whose false alarms stay within."""
    curve = roc_curve(labels, scores)
    if curve is None:
        return None
    return float(curve.true_rates[curve.false_rates <= false_rate + 1e-12].max())


def brier_score(labels: Sequence[int] | Labels, chances: Sequence[float] | Floats) -> float:
    """Return the mean squared distance of chances from what was true.

    Raises:
        DataError: If a chance lies outside [0, 1].
    """
    truth, said = _check(labels, chances, bounded=True)
    return float(((said - truth) ** 2).mean())


def expected_calibration_error(
    labels: Sequence[int] | Labels,
    chances: Sequence[float] | Floats,
    *,
    equal_mass: bool = False,
    bins: int = CALIBRATION_BINS,
) -> float:
    """Return the expected calibration error: how far what was said lies from what came.

    Args:
        labels: 1 for forged.
        chances: Said chances of forged, in [0, 1].
        equal_mass: Bins of equally many instead of equal width.
        bins: How many.

    Raises:
        DataError: If a chance lies outside [0, 1].
    """
    truth, said = _check(labels, chances, bounded=True)
    if equal_mass:
        place = np.empty(len(said), dtype=np.int64)
        place[np.argsort(said, kind="stable")] = np.arange(len(said)) * bins // len(said)
    else:
        place = np.minimum((said * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights=said - truth, minlength=bins)
    return float(np.abs(gaps).sum() / len(said))


def pool_groups(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats, groups: Sequence[object]
) -> tuple[Labels, Floats, list[object]]:
    """Return one label and mean score for each group: frames become clips.

    A group is the whole of what names a clip, as (dataset, method, clip): by a folder's name alone
    clips of different methods become one.

    Raises:
        DataError: If a group holds both labels.
    """
    truth, said = _check(labels, scores)
    places: dict[object, list[int]] = {}
    for at, group in enumerate(groups):
        places.setdefault(group, []).append(at)
    if len(groups) != len(said):
        raise _length_mismatch(len(groups), len(said))
    mixed = [group for group, at in places.items() if len(set(truth[at].tolist())) > 1]
    if mixed:
        raise DataError(
            f"{len(mixed)} groups hold both real and forged frames; the first is {mixed[0]!r}",
            code="forensics.mixed-group",
            expected="one label a clip; name clips by dataset, method and id together",
            next="score clips with a forged part by track, not by clip",
        )
    pooled = np.array([said[at].mean() for at in places.values()])
    return np.array([truth[at[0]] for at in places.values()]), pooled, list(places)


def bootstrap_auc(
    labels: Sequence[int] | Labels,
    scores: Sequence[float] | Floats,
    groups: Sequence[object],
    *,
    name: str = "auc",
    resamples: int = 2000,
    seed: int = 0,
) -> Metric:
    """Return the area under the curve with a 95 % percentile interval over resampled groups.

    Args:
        labels: 1 for forged.
        scores: Higher for forged.
        groups: What each belongs to; whole groups are drawn with replacement.
        name: Of the metric.
        resamples: How often.
        seed: Of the draws.
    """
    truth, said = _check(labels, scores)
    if len(groups) != len(said):
        raise _length_mismatch(len(groups), len(said))
    value = area_under_curve(truth, said)
    if value is None:
        return Metric(name, math.nan, n=len(said), note="one class is missing")
    numbers = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    member = np.array([numbers[group] for group in groups])
    order = np.argsort(said, kind="stable")
    truth, member = truth[order], member[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(said[order]) != 0]))
    rng, count = np.random.default_rng(seed), len(numbers)
    draws = []
    for begin in range(0, resamples, max(_BLOCK // len(said), 1)):
        size = min(max(_BLOCK // len(said), 1), resamples - begin)
        times = rng.multinomial(count, np.full(count, 1 / count), size)[:, member]
        draws.append(_weighted_areas(times * truth, times * (1 - truth), starts))
    found = np.concatenate(draws)
    found = found[np.isfinite(found)]
    if count < 2 or len(found) < resamples // 2:
        return Metric(name, value, n=count, note="too few groups for an interval")
    low, high = np.quantile(found, [0.025, 0.975])
    return Metric(name, value, float(low), float(high), count)


def run_delong_test(
    labels: Sequence[int] | Labels,
    ours: Sequence[float] | Floats,
    theirs: Sequence[float] | Floats,
) -> tuple[float, float] | None:
    """Return the difference of two areas on the same items and its p-value, by DeLong's test.

    None if a class is missing or has a single item.
    """
    truth, first = _check(labels, ours)
    _, second = _check(labels, theirs)
    counts = _counts(truth)
    if counts is None or min(counts) < 2:
        return None
    parts = [_placements(truth, said) for said in (first, second)]
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


def _placements(truth: Labels, said: Floats) -> tuple[Floats, Floats]:
    """Return for each forged item the share of real ones below it, and the mirror of it."""
    forged, real = said[truth == 1], said[truth == 0]
    whole = _ranks(said)
    up = (whole[truth == 1] - _ranks(forged)) / len(real)
    down = 1 - (whole[truth == 0] - _ranks(real)) / len(forged)
    return up, down


def _weighted_areas(forged: Labels, real: Labels, starts: npt.NDArray[np.intp]) -> Floats:
    """Return the area of each row of weights, items in order of score, ties from ``starts``."""
    up = np.add.reduceat(forged, starts, axis=1).astype(np.float64)
    down = np.add.reduceat(real, starts, axis=1).astype(np.float64)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((up * (below + down / 2)).sum(axis=1) / pairs)


def _ranks(values: Floats) -> Floats:
    """Return ranks from 1, ties sharing their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)


def _counts(truth: Labels) -> tuple[int, int] | None:
    forged = int(truth.sum())
    return None if forged in {0, len(truth)} else (len(truth) - forged, forged)


def _check(
    labels: Sequence[int] | Labels, scores: Sequence[float] | Floats, *, bounded: bool = False
) -> tuple[Labels, Floats]:
    truth = np.asarray(labels, dtype=np.float64).reshape(-1)
    said = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(truth) != len(said):
        raise _length_mismatch(len(truth), len(said))
    if not np.isin(truth, (0, 1)).all():
        raise _invalid_scores("a label is neither 0 nor 1", "0 for real, 1 for forged")
    if not np.isfinite(said).all():
        at = int(np.flatnonzero(~np.isfinite(said))[0])
        raise _invalid_scores(
            f"score {at} is {said[at]}", "finite scores; what failed is counted apart"
        )
    if bounded and (len(said) == 0 or said.min() < 0 or said.max() > 1):
        raise _invalid_scores(
            "a chance lies outside 0 to 1, or there is none", "chances, not raw scores"
        )
    return truth.astype(np.int64), said


def _length_mismatch(first: int, second: int) -> DataError:
    return _invalid_scores(
        f"there are {first} and {second} values", "one label, score and group an item"
    )


def _invalid_scores(what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.scores",
        expected=expected,
        next="look at the rows that the detector could not score",
    )


FloatArray = npt.NDArray[np.float64]


FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_0.1": 0.001}


_BINS = 15


_BOOTSTRAP_BLOCK = 2**21


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
    """Return area, precision, equal error rate, rates at 1 % and 0.1 %, and what scores allow.

    Brier score and calibration error (equal width and equal mass) are there where all scores lie in
    [0, 1]; balanced accuracy where a threshold is given.

    Args:
        labels: 1 for fake.
        scores: Higher for fake.
        groups: What each item belongs to; whole groups are drawn.
        threshold: Chosen on other items, as by ``select_threshold``.
        resamples: How often.
        seed: Of the draws.

    Raises:
        DataError: If lengths differ, or a score is not finite.
    """
    curve = roc_curve(labels, scores)  # checks both
    truth, said = np.asarray(labels, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if len(groups) != len(said):
        raise DataError(
            f"there are {len(said)} scores and {len(groups)} groups",
            code="forensics.scores",
            expected="one group an item",
            next="name each item's clip or source",
        )
    truth, said, member, count = _arrange(truth, said, groups)
    tables = _SortedScores(truth, said, threshold)
    whole = tables.measure(np.ones((1, len(said))))
    if curve is None:
        note = "one class is missing"
        return {name: Metric(name, math.nan, n=count, note=note) for name in whole}
    draws = [
        tables.measure(times) for times in _draw_weights(member, count, len(said), resamples, seed)
    ]
    return {
        name: _metric(name, float(whole[name][0]), np.concatenate([d[name] for d in draws]), count)
        for name in whole
    }


def bootstrap_areas(
    labels: Sequence[int],
    scores: Sequence[float],
    groups: Sequence[object],
    seed: int,
    *,
    resamples: int = 2000,
) -> FloatArray:
    """Return the area for each draw of groups, (resamples,); draws depend on the seed alone."""
    truth, said, member, count = _arrange(
        np.asarray(labels, dtype=np.int64), np.asarray(scores, dtype=np.float64), groups
    )
    tables = _SortedScores(truth, said, None)
    return np.concatenate(
        [
            tables.measure(times)["auc"]
            for times in _draw_weights(member, count, len(said), resamples, seed)
        ]
    )


def select_threshold(labels: Sequence[int], scores: Sequence[float]) -> float | None:
    """Return the threshold of the best balanced accuracy; None if a class is missing.

    For a threshold that is to be tested, choose it on other items than it is tested on.
    """
    curve = roc_curve(labels, scores)
    if curve is None:
        return None
    return float(curve.thresholds[int(np.argmax(curve.true_rates - curve.false_rates))])


def _arrange(
    truth: npt.NDArray[np.int64], said: FloatArray, groups: Sequence[object]
) -> tuple[npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int64], int]:
    """Return labels, scores and numbers of groups in falling order of score, and how many groups.

    Groups are numbered as they come, so that the same seed draws the same groups for any scores.
    """
    order = np.argsort(-said, kind="stable")
    numbers = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    member = np.array([numbers[group] for group in groups], dtype=np.int64)
    return truth[order], said[order], member[order], len(numbers)


def _draw_weights(
    member: npt.NDArray[np.int64], count: int, items: int, resamples: int, seed: int
) -> Iterator[FloatArray]:
    """Yield blocks of weights, (draws, items): how often each item's group was drawn."""
    # The block depends on the number of items alone, so that two detectors share every draw.
    rng, size = np.random.default_rng(seed), max(_BOOTSTRAP_BLOCK // items, 1)
    for begin in range(0, resamples, size):
        some = min(size, resamples - begin)
        times = rng.multinomial(count, np.full(count, 1 / count), some)[:, member]
        yield times.astype(np.float64)


class _SortedScores:
    """Items in falling order of score, and what is the same in every draw."""

    def __init__(
        self, truth: npt.NDArray[np.int64], said: FloatArray, threshold: float | None
    ) -> None:
        self.truth, self.said, self.threshold = truth, said, threshold
        self.ends = np.flatnonzero(np.append(np.diff(said) != 0, True))
        self.bounded = bool(len(said)) and said.min() >= 0 and said.max() <= 1

    def measure(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Return every figure for each row of weights, (draws, items)."""
        fakes = np.cumsum(weights * self.truth, axis=1)[:, self.ends]
        reals = np.cumsum(weights * (1 - self.truth), axis=1)[:, self.ends]
        with np.errstate(divide="ignore", invalid="ignore"):
            true = fakes / fakes[:, -1:]
            false = reals / reals[:, -1:]
            precision = fakes / (fakes + reals)
        start = np.zeros((len(weights), 1))
        true, false = np.hstack([start, true]), np.hstack([start, false])
        steps = np.diff(true, axis=1)
        figures = {
            "auc": ((true[:, 1:] + true[:, :-1]) / 2 * np.diff(false, axis=1)).sum(axis=1),
            "ap": np.where(steps > 0, steps * precision, 0.0).sum(axis=1),
            "eer": _equal_error(true, false),
        }
        figures["ap"] = np.where(np.isfinite(true[:, -1]), figures["ap"], np.nan)
        for name, most in FALSE_POSITIVE_RATES.items():
            figures[name] = np.where(false <= most + 1e-12, true, 0.0).max(axis=1)
        if self.threshold is not None:
            is_over = self.said >= self.threshold
            figures["balanced_accuracy"] = _balanced(weights, self.truth, is_over)
        if self.bounded:
            total = weights.sum(axis=1)
            figures["brier"] = weights @ (self.said - self.truth) ** 2 / total
            figures["ece"] = self._gap(weights, np.minimum(self.said * _BINS, _BINS - 1))
            place = np.arange(len(self.said)) * _BINS // len(self.said)
            figures["ece_equal_mass"] = self._gap(weights, place.astype(np.float64))
        return figures

    def _gap(self, weights: FloatArray, place: FloatArray) -> FloatArray:
        member = place.astype(np.int64)[:, None] == np.arange(_BINS)
        gaps = weights @ (member * (self.said - self.truth)[:, None])
        return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def _equal_error(true: FloatArray, false: FloatArray) -> FloatArray:
    """Return where misses equal false alarms, interpolated between the two vertices about it."""
    gap = false - (1 - true)
    after = np.argmax(gap >= 0, axis=1)
    rows = np.arange(len(gap))
    before = np.maximum(after - 1, 0)
    low, high = gap[rows, before], gap[rows, after]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, -low / (high - low), 0.0)
    return np.asarray(false[rows, before] + share * (false[rows, after] - false[rows, before]))


def _balanced(
    weights: FloatArray, truth: npt.NDArray[np.int64], is_over: npt.NDArray[np.bool_]
) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = weights @ (truth * is_over) / (weights @ truth)
        passes = weights @ ((1 - truth) * ~is_over) / (weights @ (1 - truth))
    return np.asarray((hits + passes) / 2)


def _metric(name: str, value: float, drawn: FloatArray, count: int) -> Metric:
    found = drawn[np.isfinite(drawn)]
    if count < 2 or len(found) < len(drawn) // 2:
        return Metric(name, value, n=count, note="too few groups for an interval")
    low, high = np.quantile(found, _LEVELS)
    return Metric(name, value, float(low), float(high), count)
