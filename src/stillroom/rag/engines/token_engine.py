"""Token engine: exact top-k by late interaction over passages that are many vectors each.

A passage's score is the sum, over the query's vectors, of the largest dot product with any of the
passage's. All passages' tokens lie in one array with where each passage begins, so that one matrix
product and one grouped maximum score a block of them. Work grows with tokens times the query's
vectors: over a large index give the rows that a cheaper search found, or a mask.

As in the dense engine a float32 pass with a bound on its rounding leaves few rows for float64, so
that what is found, and its scores, do not depend on how rows are spread over files.

Source: ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832. Does not know: centroids and residuals
(PLAID), which a cheaper first search replaces here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.rag.engines.arrays import Arrays, map_arrays, write_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOKENS", "TokenEngine", "TokenVectors"]

TOKENS = "token_vectors.safetensors"
_BLOCK_TOKENS = 8192


@dataclass(frozen=True)
class TokenVectors:
    """The vectors of passages' tokens: ``tokens`` (T, D) float, ``starts`` (N + 1,) int64."""

    tokens: NDArray[Any]
    starts: NDArray[np.int64]

    @classmethod
    def join(cls, passages: Iterable[NDArray[Any]], width: int) -> Self:
        """Return the vectors of passages, (n, width) float each, one after another."""
        several = list(passages)
        starts = np.cumsum([0, *map(len, several)], dtype=np.int64)
        return cls(np.concatenate([np.zeros((0, width), dtype=np.float32), *several]), starts)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map what ``write`` left in a folder.

        Raises:
            IntegrityError: If the file is missing, cut off or not made of the arrays it must have.
        """
        arrays = map_arrays(folder / TOKENS, ("tokens", "starts"), _fits)
        return cls(arrays["tokens"], arrays["starts"])

    def write(self, folder: Path) -> None:
        """Write the vectors into a folder, atomically; equal vectors give equal bytes.

        Raises:
            ResourceError: If the disk is full.
        """
        write_arrays(folder / TOKENS, {"tokens": self.tokens, "starts": self.starts})

    def __len__(self) -> int:
        """Return how many passages there are."""
        return len(self.starts) - 1

    def of(self, row: int) -> NDArray[Any]:
        """Return the vectors of one passage, (n, D)."""
        return self.tokens[int(self.starts[row]) : int(self.starts[row + 1])]

    @cached_property
    def largest(self) -> float:
        """The largest norm of any vector; computed once."""
        most = 0.0
        for start in range(0, len(self.tokens), _BLOCK_TOKENS):
            block = np.asarray(self.tokens[start : start + _BLOCK_TOKENS], dtype=np.float32)
            most = max(most, float(np.linalg.norm(block, axis=1).max(initial=0)))
        return most


class TokenEngine:
    """Searches a view: files of token vectors one after another, and which rows are allowed."""

    def __init__(
        self, parts: Sequence[TokenVectors], alive: NDArray[np.bool_] | None = None
    ) -> None:
        """Make a view; cheap until it is asked.

        Args:
            parts: Token vectors of one width; the rows of the second follow those of the first.
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
        near = self._nearest(asked, k, self._list_rows(mask, rows))
        scores = np.array([self._score(asked, int(row)) for row in near], dtype=np.float32)
        order = np.lexsort((near, -scores))[:k]
        return near[order], scores[order]

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
        at = int(np.searchsorted(self._offsets, row, side="right")) - 1
        own = self._parts[at].of(row - int(self._offsets[at])).astype(np.float64)
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
        near = np.asarray(part.tokens[chosen], dtype=np.float32) @ query.T  # (tokens, Q)
        yield np.maximum.reduceat(near, begins, axis=0).sum(axis=1)
        first = last


def _fits(arrays: Arrays) -> bool:
    tokens, starts = arrays["tokens"], arrays["starts"]
    return tokens.ndim == 2 and starts.ndim == 1 and len(starts) > 0 and starts[-1] == len(tokens)
