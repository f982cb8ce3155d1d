"""Impacts: what each term adds to the rows that hold it, and the best rows of a sum of them.

A row's score is one sum in one order, whatever the mask and however the rows are found: the same
bits. Does not know where impacts come from: BM25, or a model that learned them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Impacts", "TermCache", "rank_rows"]


@dataclass(frozen=True, slots=True)
class Impacts:
    """What a term adds to the rows that hold it: rows ascending (N,), values (N,), their maximum.

    ``absent`` is what it adds to the others; ``values`` are above it by what they say.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    most: float
    absent: float

    @property
    def size_bytes(self) -> int:
        """How much memory they take."""
        return self.rows.nbytes + self.values.nbytes + 512


class TermCache:
    """What terms add, by last use, up to a number of bytes; shared by engines and threads."""

    def __init__(self, limit_bytes: int = 96 << 20) -> None:
        """Keep at most ``limit_bytes``, and always the last one asked for."""
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[Hashable, Impacts] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Impacts | None:
        """Return what is kept under a key, or None."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, value: Impacts) -> None:
        """Keep a value and let go of those that were not used for longest."""
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = value
            self.size_bytes += value.size_bytes
            while self.size_bytes > self.limit_bytes and len(self._kept) > 1:
                self.size_bytes -= self._kept.popitem(last=False)[1].size_bytes


Weighted = Sequence[tuple[float, Impacts]]


def rank_rows(
    weighted: Iterable[tuple[str, float, Impacts]],
    count: int,
    k: int,
    mask: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best ``k`` rows of a weighted sum of impacts, best first, ties by row; exact.

    Args:
        weighted: Terms, all different, their weights, above 0, and their impacts, none empty.
        count: How many rows there are.
        k: How many rows to return; only those that some term adds to.
        mask: Which rows may be found, (N,) bool.
    """
    # The one order in which every row's score is summed: what can add most comes first.
    ordered = sorted(weighted, key=lambda item: (-item[1] * item[2].most, item[0]))
    summands = [(weight, one) for _, weight, one in ordered]
    if not summands:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    if mask is not None and (rows := _narrow(mask, summands)) is not None:
        scores = _score_rows(rows, summands)
    else:
        rows, scores = _score_all(count, summands, k, mask)
    return _best(rows, scores, k)


def _narrow(mask: NDArray[np.bool_], weighted: Weighted) -> NDArray[np.int64] | None:
    """Return the mask's rows where looking each of them up is less work than scoring all."""
    allowed = int(np.count_nonzero(mask))
    touched = sum(len(one.rows) for _, one in weighted) + len(mask) // 3
    # A binary search takes about as long as adding sixteen postings.
    return np.flatnonzero(mask) if allowed * 16 * len(weighted) < touched else None


def _score_rows(rows: NDArray[np.int64], weighted: Weighted) -> NDArray[np.float64]:
    """Return the scores of rows, ascending, by looking each up in every term's rows."""
    scores = np.zeros(len(rows))
    for weight, one in weighted:
        at = np.searchsorted(one.rows, rows)
        at[at == len(one.rows)] = 0
        held = one.rows[at] == rows
        scores[held] += weight * one.values[at[held]]
    return scores


def _score_all(
    count: int, weighted: Weighted, k: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rows and scores of all that may be among the best ``k``."""
    scores = np.zeros(count)
    for weight, one in weighted:
        scores[one.rows] += one.values if weight == 1.0 else weight * one.values
    if mask is not None:
        np.multiply(scores, mask, out=scores)
    limit = 0.0
    for _, one in weighted:
        if len(one.rows) >= k:
            some = scores[one.rows]
            limit = float(np.partition(some, len(some) - k)[len(some) - k])
            break
    rows = np.flatnonzero(scores >= limit if limit > 0 else scores > 0)
    return rows, scores[rows]


def _best(
    rows: NDArray[np.int64], scores: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best ``k`` with a score above 0, best first, ties by row."""
    if len(rows) > k:
        limit = max(float(np.partition(scores, len(rows) - k)[len(rows) - k]), 0.0)
        near = scores >= limit
        rows, scores = rows[near], scores[near]
    order = np.lexsort((rows, -scores))[:k]
    rows, scores = rows[order], scores[order]
    above = scores > 0
    return rows[above], scores[above]
