"""Fusion: several ranked lists to one.

``reciprocal_rank``: score(d) = sum over lists of weight / (k + rank(d)), rank from 1, a list that
does not hold d gives 0, k = 60. Equal scores are ordered by the best single rank, then by row.

Source: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and
individual Rank Learning Methods", SIGIR.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Ranked", "reciprocal_rank"]

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
    order = sorted(fused, key=lambda row: (-fused[row], best[row], row))
    return [(row, fused[row]) for row in order]
