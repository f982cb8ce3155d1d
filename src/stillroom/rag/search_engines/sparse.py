"""Sparse search: exact top-k over learned term weights.

The score is the dot product of the term weights of passage and query, a few hundred terms each. The
terms may be a model's vocabulary (SPLADE) or any other; weights are stored as float32. Without
statistics over passages, rows that must not be seen cannot affect scores.

Source: SPLADE, Formal et al. 2021, arXiv:2107.05720.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.rag.search_engines.arrays import (
    Arrays,
    TermTable,
    map_arrays,
    sort_terms,
    write_arrays,
)
from stillroom.text.bm25 import TermImpactCache, TermImpacts, rank_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WEIGHTS", "SparseEngine", "TermWeights", "merge_term_weights"]

WEIGHTS = "term_weights.safetensors"
_ARRAYS = ("terms", "term_starts", "starts", "rows", "weights", "size")


def merge_term_weights(
    folder: Path, pieces: Iterable[tuple[TermWeights, NDArray[np.bool_] | None]]
) -> None:
    """Write the selected rows of several files, in order, as one file.

    The bytes are the same, however the rows are divided among the files.

    ``term_weights.safetensors`` is written to ``folder``, none of the parts', atomically. Each of
    the pieces has a mask of the rows to keep, (N,) bool, or None for all.

    Raises:
        ResourceError: If the disk is full.
    """
    vocabulary: defaultdict[bytes, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    ids, rows = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    weights = [np.zeros(0, dtype=np.float32)]
    count = 0
    for part, mask in pieces:
        kept_mask = np.ones(len(part), dtype=bool) if mask is None else mask
        names = np.array([vocabulary[word] for word in part.words()], dtype=np.int64)
        numbers, part_rows, values = part.postings()
        keep = kept_mask[part_rows]
        ids.append(names[numbers[keep]])
        rows.append((count + np.cumsum(kept_mask) - 1)[part_rows[keep]])
        weights.append(values[keep])
        count += int(kept_mask.sum())
    joined = np.concatenate(ids)
    used = np.zeros(len(vocabulary), dtype=bool)
    used[joined] = True
    words = sorted(word for word, number in vocabulary.items() if used[number])
    ranks = np.zeros(len(vocabulary), dtype=np.int64)
    ranks[[vocabulary[word] for word in words]] = np.arange(len(words))
    arrays = _arrange_arrays(
        words, ranks[joined], np.concatenate(rows), np.concatenate(weights), count
    )
    write_arrays(folder / WEIGHTS, arrays)


def _arrange_arrays(
    words: Sequence[bytes],
    numbers: NDArray[np.int64],
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
    count: int,
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file: sorted terms, and by term the rows with their weights."""
    order = np.lexsort((rows, numbers))
    return {
        **TermTable.pack(words),
        "starts": np.searchsorted(numbers[order], np.arange(len(words) + 1)).astype(np.int64),
        "rows": rows[order].astype(np.int32),
        "weights": weights[order],
        "size": np.array([count], dtype=np.int64),
    }


class TermWeights:
    """One file of term weights, memory-mapped; reads from any thread."""

    def __init__(self, arrays: Arrays) -> None:
        self._table = TermTable(arrays["terms"], arrays["term_starts"])
        self._arrays = arrays

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the term weights of a folder; only the header is read.

        Raises:
            IntegrityError: If the file is missing, truncated, or its arrays are inconsistent.
        """
        return cls(map_arrays(folder / WEIGHTS, _ARRAYS, _is_consistent))

    @classmethod
    def of(cls, passages: Iterable[Mapping[str, float]]) -> Self:
        """Return the term weights of passages in their order, in memory.

        Equal passages give equal arrays, whatever the order of a passage's terms.

        Args:
            passages: Finite weights of each passage's terms; weights of 0 or less are left out.
        """
        vocabulary: defaultdict[str, int] = defaultdict()
        vocabulary.default_factory = vocabulary.__len__
        ids, rows, weights = array("q"), array("q"), array("f")
        count = 0
        for row, passage in enumerate(passages):
            count = row + 1
            for term, weight in passage.items():
                if weight > 0:
                    ids.append(vocabulary[term])
                    rows.append(row)
                    weights.append(weight)
        words, ranks = sort_terms(list(vocabulary))
        numbers = ranks[np.frombuffer(ids, dtype=np.int64)]
        row_numbers = np.frombuffer(rows, dtype=np.int64)
        values = np.frombuffer(weights, dtype=np.float32)
        return cls(_arrange_arrays(words, numbers, row_numbers, values, count))

    def __len__(self) -> int:
        return int(self._arrays["size"][0])

    def words(self) -> list[bytes]:
        """Return all terms as bytes, in order."""
        return self._table.words()

    def postings(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return term number, row and value of every weight, sorted by term, then row."""
        sizes = np.diff(self._arrays["starts"])
        numbers = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        return numbers, self._arrays["rows"].astype(np.int64), self._arrays["weights"]

    def span(self, first: int, last: int) -> TermWeights:
        """Return the rows from ``first`` up to ``last`` as independent term weights."""
        order, borders = self._by_row
        selection = order[borders[first] : borders[last]]
        numbers, rows, weights = self.postings()
        used, term_numbers = np.unique(numbers[selection], return_inverse=True)
        words = [self._table.word(int(number)) for number in used]
        arrays = _arrange_arrays(
            words, term_numbers, rows[selection] - first, weights[selection], last - first
        )
        return TermWeights(arrays)

    @cached_property
    def _by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the weights in order of rows, and the start of each row among them."""
        rows = self._arrays["rows"]
        order = np.argsort(rows, kind="stable")
        return order, np.searchsorted(rows[order], np.arange(len(self) + 1))

    def look_up(self, term: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the rows in which a term has a weight, ascending, and the weights."""
        number = self._table.find(term)
        span = slice(0, 0)
        if number is not None:
            starts = self._arrays["starts"]
            span = slice(int(starts[number]), int(starts[number + 1]))
        return self._arrays["rows"][span], self._arrays["weights"][span]


class SparseEngine:
    """Search over consecutive files of term weights, with a mask of allowed rows."""

    def __init__(
        self, parts: Sequence[TermWeights], alive: NDArray[np.bool_] | None = None
    ) -> None:
        """Create an engine; nothing is computed before the first search.

        Args:
            parts: Files of term weights; the rows of the second follow those of the first.
            alive: Mask of the allowed rows, (N,) bool; None for all.
        """
        self._parts = tuple(parts)
        self._offsets = np.cumsum([0, *map(len, self._parts)]).tolist()
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)
        self._cache = TermImpactCache()

    def __len__(self) -> int:
        """Return the number of rows, including those that are not allowed."""
        return int(self._offsets[-1])

    def search(
        self, terms: Mapping[str, float], k: int, *, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the exact top ``k`` rows and their scores, best first, ties by row.

        Weights of 0 or less in ``terms`` are left out; ``mask`` of the rows to search is (N,) bool.
        Rows without a common term are never returned.
        """
        weighted = [
            (term, weight, impacts)
            for term, weight in terms.items()
            if weight > 0 and len((impacts := self._impacts(term)).rows)
        ]
        return rank_rows(weighted, len(self), k, mask)

    def terms_of(self, row: int) -> dict[str, float]:
        """Return a row's terms with their weights, in order of the terms."""
        number = int(np.searchsorted(self._offsets, row, side="right")) - 1
        first = row - self._offsets[number]
        row_weights = self._parts[number].span(first, first + 1)
        weights = row_weights.postings()[2].tolist()
        return dict(zip((word.decode() for word in row_weights.words()), weights, strict=True))

    def _impacts(self, term: str) -> TermImpacts:
        known = self._cache.get(term)
        if known is None:
            postings = [
                (rows.astype(np.int64) + offset, weights)
                for part, offset in zip(self._parts, self._offsets, strict=False)
                for rows, weights in (part.look_up(term),)
            ]
            rows = np.concatenate([np.zeros(0, dtype=np.int64), *(array for array, _ in postings)])
            values = np.concatenate([np.zeros(0), *(array for _, array in postings)])
            if self._alive is not None:
                keep = self._alive[rows]
                rows, values = rows[keep], values[keep]
            known = TermImpacts(rows, values, float(values.max(initial=0)))
            self._cache.put(term, known)
        return known


def _is_consistent(arrays: Arrays) -> bool:
    ends = {"term_starts": len(arrays["terms"]), "starts": len(arrays["rows"])}
    return (
        all(len(arrays[name]) and arrays[name][-1] == end for name, end in ends.items())
        and len(arrays["term_starts"]) == len(arrays["starts"])
        and len(arrays["rows"]) == len(arrays["weights"])
        and len(arrays["size"]) == 1
    )
