"""Vectors of a snapshot in Qdrant: candidates by its search, exact scores and order by the house's.

A snapshot's contents are few of the collection's only where somebody may see few documents, or a
filter leaves few: then their keys are the payload filter. Else points that the view does not see
are dropped and more are asked for. Either way no point is found whose passage has no place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.engines.sketches import (
    MeasuredRecall,
    calibrate_oversampling,
)
from stillroom.rag.engines.vectors import DenseEngine, is_narrow
from stillroom.rag.store.schema import PASSAGE_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.filters import Condition
    from stillroom.rag.qdrant.points import Points
    from stillroom.rag.store.rows import Rows

__all__ = ["QdrantVectors"]

_SLACK = 16
_NARROW = 4
"""Contents are named one by one where they are fewer than one in so many."""
Found = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


class QdrantVectors:
    """The vectors of one population; see ``stillroom.rag.store.protocol.DenseSearch``."""

    def __init__(self, points: Points, everyone: Rows, oversampling: int | None) -> None:
        """Make a view; nothing is asked yet.

        Args:
            points: The collection.
            everyone: The passages of the population.
            oversampling: What was measured to suffice for search that ``is_near``.
        """
        self._points, self._everyone = points, everyone
        self._oversampling = oversampling
        table = everyone.table
        order = np.argsort(table.contents, kind="stable")
        self._contents, self._starts = table.contents[order], table.starts[order]
        self._counts = table.counts[order]
        self._total: int | None = None

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: Condition,
        is_near: bool = False,
    ) -> Found:
        """Return the best ``k`` places and their scores, best first."""
        query = np.asarray(vector, dtype=np.float32)
        seen = self._everyone.mask if mask is None else np.asarray(mask, dtype=bool)
        allowed = int(np.count_nonzero(seen))
        if not allowed:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if is_near and self._oversampling is not None:
            found = self._search_near(query, k, seen, allowed, self._oversampling)
            if found is not None:
                return found
        return self._search_exact(query, k, seen, allowed)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure what HNSW finds of the best ``k``, and search so from here."""
        seen = self._everyone.mask
        allowed = len(self._everyone)
        measured = calibrate_oversampling(
            queries,
            lambda query: self._search_exact(query, k, seen, allowed)[1],
            lambda query, oversampling: self._search_near(query, k, seen, allowed, oversampling),
            k=k,
            least=least,
        )
        self._oversampling = measured.oversampling
        return measured

    def vectors_at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of places of the population, (N, D)."""
        order = np.argsort(self._starts, kind="stable")
        at = order[np.searchsorted(self._starts[order], places, side="right") - 1]
        keys = (self._contents[at] << PASSAGE_BITS) + places - self._starts[at]
        return self._points.fetch([int(key) for key in keys])

    def _search_exact(
        self, query: NDArray[np.float32], k: int, seen: NDArray[np.bool_], allowed: int
    ) -> Found:
        wanted, many = min(k, allowed), k + _SLACK
        named = self._name_contents(seen, allowed)
        while True:
            keys, matrix, products = self._points.search(query, many, contents=named, ef=None)
            places, scores = self._score(query, keys, matrix, seen)
            if len(keys) < many:
                return places[:k], scores[:k]
            norms = float(np.linalg.norm(query)) * self._longest(matrix)
            least = products[-1] + norms * len(query) * 2.0**-22
            if len(places) >= wanted and least < scores[wanted - 1]:
                return places[:k], scores[:k]
            many *= 4

    def _search_near(
        self,
        query: NDArray[np.float32],
        k: int,
        seen: NDArray[np.bool_],
        allowed: int,
        oversampling: int,
    ) -> Found | None:
        """Return about the best, or None where exact search is surer."""
        wanted = k * oversampling
        if is_narrow(allowed, self._count(), wanted):
            return None
        named = self._name_contents(seen, allowed)
        keys, matrix, _ = self._points.search(query, wanted, contents=named, ef=wanted)
        places, scores = self._score(query, keys, matrix, seen)
        return (places[:k], scores[:k]) if len(places) >= min(k, allowed) else None

    def _longest(self, matrix: NDArray[np.float32]) -> float:
        """Return a bound of the norms: embedders give vectors of length one, or about that."""
        return 2.0 * max(1.0, float(np.linalg.norm(matrix, axis=1).max(initial=0.0)))

    def _count(self) -> int:
        if self._total is None:
            self._total = self._points.count()
        return self._total

    def _name_contents(self, seen: NDArray[np.bool_], allowed: int) -> list[int] | None:
        if allowed * _NARROW > self._count():
            return None
        shown = seen[self._starts]
        return [int(key) for key in self._contents[shown]]

    def _score(
        self,
        query: NDArray[np.float32],
        keys: list[int],
        matrix: NDArray[np.float32],
        seen: NDArray[np.bool_],
    ) -> Found:
        """Return the places of keys that are seen, and their exact scores, best first."""
        passages = np.array(keys, dtype=np.int64)
        contents, positions = passages >> PASSAGE_BITS, passages & ((1 << PASSAGE_BITS) - 1)
        at = np.searchsorted(self._contents, contents)
        at[at == len(self._contents)] = 0
        known = (self._contents[at] == contents) & (positions < self._counts[at])
        places = np.where(known, self._starts[at] + positions, 0)
        known &= seen[places]
        scores = DenseEngine([matrix]).score(query, np.arange(len(keys)))[known]
        places = places[known]
        order = np.lexsort((places, -scores))
        return places[order], scores[order]
