"""All figures of a detector at once, each with an interval over whole groups of items.

Groups are drawn with replacement, 2000 times; every figure is computed from the same draws by
weights on the items in order of score, so that thousands of draws over ten thousand items take
seconds.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8 (clusters as
units); figures as in ``measures``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.measures import roc_curve

__all__ = ["FALSE_RATES", "draw_areas", "measure_scores", "pick_threshold"]

Floats = npt.NDArray[np.float64]
FALSE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_0.1": 0.001}
_BINS = 15
_BLOCK = 2**21
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
        threshold: Chosen on other items, as by ``pick_threshold``.
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
    tables = _Tables(truth, said, threshold)
    whole = tables.measure(np.ones((1, len(said))))
    if curve is None:
        note = "one class is missing"
        return {name: Metric(name, math.nan, n=count, note=note) for name in whole}
    draws = [tables.measure(times) for times in _draw(member, count, len(said), resamples, seed)]
    return {
        name: _metric(name, float(whole[name][0]), np.concatenate([d[name] for d in draws]), count)
        for name in whole
    }


def draw_areas(
    labels: Sequence[int],
    scores: Sequence[float],
    groups: Sequence[object],
    seed: int,
    *,
    resamples: int = 2000,
) -> Floats:
    """Return the area for each draw of groups, (resamples,); draws depend on the seed alone."""
    truth, said, member, count = _arrange(
        np.asarray(labels, dtype=np.int64), np.asarray(scores, dtype=np.float64), groups
    )
    tables = _Tables(truth, said, None)
    return np.concatenate(
        [tables.measure(times)["auc"] for times in _draw(member, count, len(said), resamples, seed)]
    )


def pick_threshold(labels: Sequence[int], scores: Sequence[float]) -> float | None:
    """Return the threshold of the best balanced accuracy; None if a class is missing.

    For a threshold that is to be tested, choose it on other items than it is tested on.
    """
    curve = roc_curve(labels, scores)
    if curve is None:
        return None
    return float(curve.thresholds[int(np.argmax(curve.true_rates - curve.false_rates))])


def _arrange(
    truth: npt.NDArray[np.int64], said: Floats, groups: Sequence[object]
) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.int64], int]:
    """Return labels, scores and numbers of groups in falling order of score, and how many groups.

    Groups are numbered as they come, so that the same seed draws the same groups for any scores.
    """
    order = np.argsort(-said, kind="stable")
    numbers = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    member = np.array([numbers[group] for group in groups], dtype=np.int64)
    return truth[order], said[order], member[order], len(numbers)


def _draw(
    member: npt.NDArray[np.int64], count: int, items: int, resamples: int, seed: int
) -> Iterator[Floats]:
    """Yield blocks of weights, (draws, items): how often each item's group was drawn."""
    # The block depends on the number of items alone, so that two detectors share every draw.
    rng, size = np.random.default_rng(seed), max(_BLOCK // items, 1)
    for begin in range(0, resamples, size):
        some = min(size, resamples - begin)
        times = rng.multinomial(count, np.full(count, 1 / count), some)[:, member]
        yield times.astype(np.float64)


class _Tables:
    """Items in falling order of score, and what is the same in every draw."""

    def __init__(self, truth: npt.NDArray[np.int64], said: Floats, threshold: float | None) -> None:
        self.truth, self.said, self.threshold = truth, said, threshold
        self.ends = np.flatnonzero(np.append(np.diff(said) != 0, True))
        self.bounded = bool(len(said)) and said.min() >= 0 and said.max() <= 1

    def measure(self, weights: Floats) -> dict[str, Floats]:
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
        for name, most in FALSE_RATES.items():
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

    def _gap(self, weights: Floats, place: Floats) -> Floats:
        member = place.astype(np.int64)[:, None] == np.arange(_BINS)
        gaps = weights @ (member * (self.said - self.truth)[:, None])
        return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def _equal_error(true: Floats, false: Floats) -> Floats:
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
    weights: Floats, truth: npt.NDArray[np.int64], is_over: npt.NDArray[np.bool_]
) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = weights @ (truth * is_over) / (weights @ truth)
        passes = weights @ ((1 - truth) * ~is_over) / (weights @ (1 - truth))
    return np.asarray((hits + passes) / 2)


def _metric(name: str, value: float, drawn: Floats, count: int) -> Metric:
    found = drawn[np.isfinite(drawn)]
    if count < 2 or len(found) < len(drawn) // 2:
        return Metric(name, value, n=count, note="too few groups for an interval")
    low, high = np.quantile(found, _LEVELS)
    return Metric(name, value, float(low), float(high), count)
