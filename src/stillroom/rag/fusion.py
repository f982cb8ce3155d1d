"""Fusion: several ranked lists to one.

``reciprocal_rank``: score(d) = sum over lists of weight / (k + rank(d)), rank from 1, a list that
does not hold d gives 0, k = 60. ``combine_scores``: score(d) = sum over lists of weight * n(d),
where n is the list's normalization and a list that does not hold d gives 0. Equal scores are
ordered by the best single rank, then by row.

Normalizations, of a list with scores s, their mean m and their deviation t (of the list as a
whole, divided by n): where all scores are equal, each is 1 in the first three, and 1/2 in ``dbsf``.

- ``minmax``: (s - min) / (max - min). The last of a list counts as much as one that is absent.
- ``zscore``: (s - min) / t, which is the z-score with absent ones given the lowest of the list: the
  shift is the same for all, so the order is that of z-scores.
- ``theoretical``: (s - floor) / (max - floor), the floor being the least that the score can be.
- ``dbsf``: (s - (m - 3t)) / 6t, not below 0, so that none found counts less than an absent one.

Sources: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and
individual Rank Learning Methods", SIGIR; Bruch, Gai and Ingber 2022, "An Analysis of Fusion
Functions for Hybrid Retrieval", arXiv:2210.11934 (convex combination, theoretical minima).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["Normalization", "Ranked", "combine_scores", "normalize_scores", "reciprocal_rank"]

Normalization = Literal["minmax", "zscore", "theoretical", "dbsf"]

Ranked = Sequence[tuple[int, float]]
"""Rows with scores, best first; a row appears once."""


def reciprocal_rank(
    lists: Sequence[Ranked], *, k: float = 60.0, weights: Sequence[float] | None = None
) -> list[tuple[int, float]]:
    """Return the rows of all lists by fused score, best first.

    Args:
        lists: Ranked lists; only their order counts, their scores do not.
        k: Flattens the difference between the first ranks; 0 or more.
        weights: One for each list; default 1 for all.
    """
    fused: dict[int, float] = {}
    best: dict[int, int] = {}
    for ranked, weight in zip(lists, weights or [1.0] * len(lists), strict=True):
        for rank, (row, _) in enumerate(ranked, start=1):
            fused[row] = fused.get(row, 0.0) + weight / (k + rank)
            best[row] = min(best.get(row, rank), rank)
    return _ordered(fused, best)


def combine_scores(
    lists: Sequence[Ranked],
    weights: Sequence[float],
    *,
    normalization: Normalization,
    floors: Sequence[float],
) -> list[tuple[int, float]]:
    """Return the rows of all lists by the weighted sum of their normalized scores, best first.

    Args:
        lists: Ranked lists with scores.
        weights: One for each list.
        normalization: What makes scores of several lists comparable.
        floors: The least that a score of each list can be; used by ``theoretical``.
    """
    fused: dict[int, float] = {}
    best: dict[int, int] = {}
    for ranked, weight, floor in zip(lists, weights, floors, strict=True):
        normal = normalize_scores([score for _, score in ranked], normalization, floor=floor)
        for rank, ((row, _), score) in enumerate(zip(ranked, normal, strict=True), start=1):
            fused[row] = fused.get(row, 0.0) + weight * score
            best[row] = min(best.get(row, rank), rank)
    return _ordered(fused, best)


def normalize_scores(
    scores: Sequence[float], normalization: Normalization, *, floor: float = 0.0
) -> list[float]:
    """Return a list's scores on a scale where 0 is what an absent row has."""
    if not scores:
        return []
    values = np.asarray(scores, dtype=np.float64)
    low, high, spread = float(values.min()), float(values.max()), float(values.std())
    if high - low <= 1e-12 * max(abs(high), abs(low)):
        return [0.5 if normalization == "dbsf" else 1.0] * len(scores)
    if normalization == "minmax":
        normal = (values - low) / (high - low)
    elif normalization == "zscore":
        normal = (values - low) / spread
    elif normalization == "theoretical":
        normal = (values - floor) / (high - floor)
    else:
        normal = np.maximum((values - (values.mean() - 3 * spread)) / (6 * spread), 0.0)
    return [float(value) for value in normal]


def _ordered(fused: dict[int, float], best: dict[int, int]) -> list[tuple[int, float]]:
    order = sorted(fused, key=lambda row: (-fused[row], best[row], row))
    return [(row, fused[row]) for row in order]
