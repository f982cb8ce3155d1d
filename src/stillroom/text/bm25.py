"""BM25 term weights (idf, k1, b: ``weigh_term``), and exact top-k ranking over sums of them.

Impacts, the terms' contributions to the score, may be those of BM25 or of a learned model; where
postings are stored (file or memory) is the caller's business. A row's score is one sum in one
order, so its bits depend neither on the mask nor on the strategy by which rows are found.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019, with Lucene's idf, which is above 0.
Other variants are not offered: Kamphuis et al. 2020, "Which BM25 Do You Mean?", ECIR, found no
significant differences between them, and neither did we (docs/explanation/lab-notebook.md).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BM25Parameters",
    "TermImpactCache",
    "TermImpacts",
    "compute_idf",
    "rank_rows",
    "weigh_term",
]


@dataclass(frozen=True, slots=True)
class BM25Parameters:
    """Settings of BM25, applied by ``stillroom.text.bm25.weigh_term``; part of the cache key."""

    k1: float = 1.2
    b: float = 0.75
    headings: float = 1.0


def compute_idf(frequency: int, population: int) -> float:
    """Return a term's inverse document frequency in nats, above 0."""
    return math.log1p((population - frequency + 0.5) / (frequency + 0.5))


def weigh_term(
    parameters: BM25Parameters,
    rows: NDArray[np.int64],
    frequency: NDArray[np.float64],
    lengths: NDArray[np.float64],
    population: int,
) -> TermImpacts:
    """Return a term's contribution to each row that contains it.

    ``rows`` are ascending, (N,), ``frequency`` is above 0, (N,); ``lengths`` are over the mean
    length of all rows, (N,), whose number is ``population``.
    """
    norm = 1 - parameters.b + parameters.b * lengths
    idf = compute_idf(len(rows), population)
    values = idf * frequency / (frequency + parameters.k1 * norm)
    return TermImpacts(rows, values, float(values.max(initial=0)))


@dataclass(frozen=True, slots=True)
class TermImpacts:
    """A term's contributions: rows ascending (N,), values (N,), and their maximum."""

    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    most: float

    @property
    def size_bytes(self) -> int:
        """Memory used, in bytes."""
        return self.rows.nbytes + self.values.nbytes + 512


class TermImpactCache:
    """Least-recently-used cache of term impacts with a byte limit; shared by threads."""

    def __init__(self, limit_bytes: int = 96 << 20) -> None:
        """Limit the cache to ``limit_bytes``; the last entry always stays."""
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[Hashable, TermImpacts] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> TermImpacts | None:
        """Return the entry of a key, or None."""
        with self._lock:
            impacts = self._entries.get(key)
            if impacts is not None:
                self._entries.move_to_end(key)
            return impacts

    def put(self, key: Hashable, value: TermImpacts) -> None:
        """Store an entry and evict the least recently used ones."""
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = value
            self.size_bytes += value.size_bytes
            while self.size_bytes > self.limit_bytes and len(self._entries) > 1:
                self.size_bytes -= self._entries.popitem(last=False)[1].size_bytes


WeightedImpacts = Sequence[tuple[float, TermImpacts]]


def rank_rows(
    weighted: Iterable[tuple[str, float, TermImpacts]],
    count: int,
    k: int,
    mask: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best ``k`` rows of a weighted sum of impacts, best first, ties by row; exact.

    Terms are distinct, with weights above 0 and non-empty impacts. Only rows with a contribution
    are returned, of those that ``mask``, (N,) bool, allows.
    """
    # One fixed order of summation for every row: the largest possible contribution first.
    ordered = sorted(weighted, key=lambda item: (-item[1] * item[2].most, item[0]))
    summands = [(weight, impacts) for _, weight, impacts in ordered]
    if not summands:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    if mask is not None and (rows := _narrow_mask(mask, summands)) is not None:
        scores = _score_rows(rows, summands)
    else:
        rows, scores = _score_all(count, summands, k, mask)
    return _top_k(rows, scores, k)


def _narrow_mask(mask: NDArray[np.bool_], weighted: WeightedImpacts) -> NDArray[np.int64] | None:
    """Return the mask's rows where looking up each is less work than scoring all."""
    allowed = int(np.count_nonzero(mask))
    touched = sum(len(impacts.rows) for _, impacts in weighted) + len(mask) // 3
    # A binary search takes about as long as adding sixteen postings.
    return np.flatnonzero(mask) if allowed * 16 * len(weighted) < touched else None


def _score_rows(rows: NDArray[np.int64], weighted: WeightedImpacts) -> NDArray[np.float64]:
    """Return the scores of ascending rows by looking up each in every term's rows."""
    scores = np.zeros(len(rows))
    for weight, impacts in weighted:
        indices = np.searchsorted(impacts.rows, rows)
        indices[indices == len(impacts.rows)] = 0
        has_term = impacts.rows[indices] == rows
        scores[has_term] += weight * impacts.values[indices[has_term]]
    return scores


def _score_all(
    count: int, weighted: WeightedImpacts, k: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rows and scores of all candidates for the best ``k``."""
    scores = np.zeros(count)
    for weight, impacts in weighted:
        scores[impacts.rows] += impacts.values if weight == 1.0 else weight * impacts.values
    if mask is not None:
        np.multiply(scores, mask, out=scores)
    limit = 0.0
    for _, impacts in weighted:
        if len(impacts.rows) >= k:
            term_scores = scores[impacts.rows]
            limit = float(np.partition(term_scores, -k)[-k])
            break
    rows = np.flatnonzero(scores >= limit if limit > 0 else scores > 0)
    return rows, scores[rows]


def _top_k(
    rows: NDArray[np.int64], scores: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best ``k`` rows with a score above 0, best first, ties by row."""
    if len(rows) > k:
        limit = max(float(np.partition(scores, -k)[-k]), 0.0)
        is_candidate = scores >= limit
        rows, scores = rows[is_candidate], scores[is_candidate]
    order = np.lexsort((rows, -scores))[:k]
    rows, scores = rows[order], scores[order]
    is_positive = scores > 0
    return rows[is_positive], scores[is_positive]
