"""Token engine: exact top-k by late interaction over passages that are many vectors each.

A passage's score is the sum, over the query's vectors, of the largest dot product with any of the
passage's. All passages' tokens lie in one array with where each passage begins, so that one matrix
product and one grouped maximum score a block of them. Work grows with tokens times the query's
vectors: over a large index give the rows that a cheaper search found, or a mask.

As in the dense engine a float32 pass with a bound on its rounding leaves few rows for float64, so
that what is found, and its scores, do not depend on how rows are spread over files.

Of tokens that are kept as codes the search is exact over what they read back as.

Source: ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832. Does not know: centroids (PLAID), which
a cheaper first search replaces here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillroom.rag.engines.token_vectors import TokenVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TokenEngine"]

_BLOCK_TOKENS = 8192


class TokenEngine:
    """Searches a view: files of token vectors one after another, and which rows are allowed."""

    def __init__(
        self, parts: Sequence[TokenVectors], alive: NDArray[np.bool_] | None = None
    ) -> None:
        """Make a view; cheap until it is asked.

        Args:
            parts: Token vectors of one width and kind; the rows of the second follow those of the
                first.
            alive: Which rows may be found, (N,) bool; None for all.
        """
        self._parts = tuple(parts)
        self._offsets = np.cumsum([0, *map(len, self._parts)])
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)

    def __len__(self) -> int:
        """Return how many rows the view spans, those that are not allowed included."""
        return int(self._offsets[-1])

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        mask: NDArray[np.bool_] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best ``k`` rows and their scores, best first, ties by row; exact.

        Args:
            query: The query's vectors, (Q, D); finite.
            k: How many rows; 1 or more. Passages without any token are never found.
            mask: Which rows may be found, (N,) bool.
            rows: Or these alone, different and in any order.
        """
        asked = np.asarray(query, dtype=np.float32)
        if self._parts:
            asked = self._parts[0].prepare(asked)
        near = self._nearest(asked, k, self._list_rows(mask, rows))
        scores = np.array([self._score(asked, int(row)) for row in near], dtype=np.float32)
        order = np.lexsort((near, -scores))[:k]
        return near[order], scores[order]

    def vectors_of(self, row: int) -> NDArray[np.float32]:
        """Return a row's token vectors, (T, D), as they are kept."""
        at = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return self._parts[at].of(row - int(self._offsets[at]))

    def _list_rows(
        self, mask: NDArray[np.bool_] | None, rows: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Return the rows that may be found, ascending."""
        listed = np.arange(len(self)) if rows is None else np.sort(rows)
        for flags in (mask, self._alive):
            if flags is not None:
                listed = listed[flags[listed]]
        return listed

    def _nearest(
        self, query: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return ascending rows among which the best ``k`` are."""
        sizes = float(np.linalg.norm(query, axis=1).sum())
        kept, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
        cuts = np.searchsorted(rows, self._offsets)
        most = 0.0
        for at, part in enumerate(self._parts):
            own = rows[cuts[at] : cuts[at + 1]] - self._offsets[at]
            own = own[part.starts[own + 1] > part.starts[own]]
            if len(own):
                most = max(most, part.largest)
                kept.append(own + self._offsets[at])
                scores.append(np.concatenate(list(_scan(part, own, query))).astype(np.float64))
        near, about = np.concatenate(kept), np.concatenate(scores)
        if len(near) <= k:
            return near
        # Higham 2002, section 3.1: a sum of n products in any order is off by n u at most.
        radius = sizes * most * (sum(query.shape) + 8) * 2.0**-23
        limit = np.partition(about, len(about) - k)[len(about) - k]
        found: NDArray[np.int64] = near[about >= limit - 2 * radius]
        return found

    def _score(self, query: NDArray[np.float32], row: int) -> float:
        own = self.vectors_of(row).astype(np.float64)
        return float((own @ query.T.astype(np.float64)).max(axis=0).sum())


def _scan(
    part: TokenVectors, rows: NDArray[np.int64], query: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Yield about what ascending rows, none empty, score: some rows at a time."""
    sizes = part.starts[rows + 1] - part.starts[rows]
    ends = np.cumsum(sizes)
    first = 0
    while first < len(rows):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_TOKENS, side="right")))
        begins = ends[first:last] - sizes[first:last] - done
        shifts = np.repeat(part.starts[rows[first:last]] - begins, sizes[first:last])
        places = shifts + np.arange(int(ends[last - 1]) - done)
        is_run = int(places[-1]) - int(places[0]) + 1 == len(places)
        chosen = slice(int(places[0]), int(places[-1]) + 1) if is_run else places
        near = part.read(chosen) @ query.T  # (tokens, Q)
        yield np.maximum.reduceat(near, begins, axis=0).sum(axis=1)
        first = last
