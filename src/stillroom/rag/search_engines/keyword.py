"""Keyword search in an inverted index: exact BM25 top-k; term weights are ``text.bm25``.

The idf of a term and the average length are computed from the allowed rows alone, so that rows that
must not be seen do not affect scores. The impact of a term on every row is computed when first
needed, and cached while memory allows. Scores do not depend on the distribution of rows over files,
on the mask or on earlier searches: a row's score is one sum in one order.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019 (``stillroom.text.bm25``).

A postings file has the safetensors format and is memory-mapped, so that opening costs the same for
a hundred passages and for a million. Terms are sorted by their UTF-8 bytes in one blob and found by
binary search. Headings and text have separate counts, positions and lengths.

A position encodes a term's word in its field and its part of the word
(``stillroom.rag.analysis.phrases``), stop words included: a phrase is matched as the analyzer
splits it, and a phrase in headings may continue from one level into the next.
"""

from __future__ import annotations

import threading
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from stillroom.rag.analysis.phrases import PhraseWord, encode_position, find_phrase_rows
from stillroom.rag.search_engines.arrays import (
    Arrays,
    TermTable,
    map_arrays,
    shrink_dtype,
    sort_terms,
    write_arrays,
)
from stillroom.text.bm25 import (
    BM25Parameters,
    TermImpactCache,
    TermImpacts,
    compute_idf,
    rank_rows,
    weigh_term,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FIELDS",
    "POSTINGS",
    "Field",
    "KeywordEngine",
    "Postings",
    "PostingsRow",
    "merge_postings",
    "write_postings",
]


_CACHED_LENGTHS = 4
_CACHED_FREQUENCIES = 1 << 16


class KeywordEngine:
    """BM25 search over consecutive files of postings; ``text.bm25.weigh_term`` weighs a term."""

    def __init__(
        self,
        postings: Sequence[Postings],
        alive: NDArray[np.bool_] | None = None,
    ) -> None:
        """Create an engine; nothing is computed before the first search.

        Args:
            postings: Files of postings; the rows of the second follow those of the first.
            alive: Mask of the rows that the user may know of, (N,) bool; None for all. Document
                frequencies and lengths are counted over these.
        """
        self._postings = tuple(postings)
        self._offsets = np.cumsum([0, *map(len, self._postings)]).tolist()
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)
        self._cache = TermImpactCache()
        self._frequencies: dict[str, int] = {}
        self._lengths: dict[float, tuple[NDArray[np.float64], float]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of rows, including those that are not allowed."""
        return int(self._offsets[-1])

    @property
    def population(self) -> int:
        """Number of allowed rows."""
        return len(self) if self._alive is None else int(np.count_nonzero(self._alive))

    def document_frequency(self, term: str) -> int:
        """Return the number of allowed rows that contain the term in any field."""
        known = self._frequencies.get(term)
        if known is None:
            known = len(self._gather(term)[0])
            with self._lock:
                if len(self._frequencies) >= _CACHED_FREQUENCIES:
                    self._frequencies.clear()
                self._frequencies[term] = known
        return known

    def idf(self, term: str) -> float:
        """Return the term's inverse document frequency by Lucene's formula, in nats; above 0."""
        return compute_idf(self.document_frequency(term), self.population)

    def search(
        self,
        terms: Mapping[str, float],
        k: int,
        *,
        k1: float = 1.2,
        b: float = 0.75,
        heading_weight: float = 1.0,
        mask: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the best ``k`` rows and their scores, best first, ties by row.

        The result equals scoring every row and sorting. Rows without any of the terms never match.

        Args:
            terms: Weight of each term, above 0; in a plain query, its count.
            k: Number of rows, 1 or more.
            k1: Saturation of term frequency, 0 or more.
            b: Strength of length normalization, 0 to 1.
            heading_weight: Weight of an occurrence in a heading, relative to one in the text.
            mask: Mask of the rows to search, (N,) bool; unlike ``alive`` it changes no score.
        """
        parameters = BM25Parameters(k1, b, heading_weight)
        weighted = [
            (term, weight, impacts)
            for term, weight in terms.items()
            if len((impacts := self._impacts(term, parameters)).rows)
        ]
        return rank_rows(weighted, len(self), k, mask)

    def phrase(
        self, words: Sequence[PhraseWord | str], *, field: Field = "body"
    ) -> NDArray[np.int64]:
        """Return the allowed rows that contain consecutive words in a field, ascending.

        No words match nothing.
        """
        matches: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        for part, offset in zip(self._postings, self._offsets, strict=False):
            matches.append(part.phrase(words, field) + offset)
        rows = np.concatenate(matches)
        return rows if self._alive is None else rows[self._alive[rows]]

    def _gather(self, term: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the allowed rows that contain a term, and its counts in headings and in text."""
        postings = []
        for part, offset in zip(self._postings, self._offsets, strict=False):
            number = part.find(term)
            if number is not None:
                part_rows, *counts = part.look_up(number)
                postings.append((part_rows.astype(np.int64) + offset, *counts))
        if not postings:
            empty = np.zeros(0, dtype=np.int64)
            return empty, empty, empty
        rows, headings, body = (
            np.concatenate(arrays, dtype=np.int64) for arrays in zip(*postings, strict=True)
        )
        if self._alive is not None:
            keep = self._alive[rows]
            rows, headings, body = rows[keep], headings[keep], body[keep]
        return rows, headings, body

    def _impacts(self, term: str, parameters: BM25Parameters) -> TermImpacts:
        key = (term, parameters)
        known = self._cache.get(key)
        if known is None:
            known = self._weigh(term, parameters)
            self._cache.put(key, known)
        return known

    def _weigh(self, term: str, parameters: BM25Parameters) -> TermImpacts:
        rows, headings, body = self._gather(term)
        frequency: NDArray[np.float64] = headings * np.float64(parameters.headings) + body
        if not parameters.headings > 0:
            rows, frequency = rows[frequency > 0], frequency[frequency > 0]
        lengths, mean = self._relative_lengths(parameters)
        return weigh_term(parameters, rows, frequency, lengths[rows] / mean, self.population)

    def _count_terms(self) -> NDArray[np.int64]:
        """Return the number of terms of each row in headings and in text, (N, 2)."""
        empty = np.zeros((0, 2), dtype=np.int64)
        return np.concatenate([empty, *(part.lengths for part in self._postings)])

    def _relative_lengths(self, parameters: BM25Parameters) -> tuple[NDArray[np.float64], float]:
        key = parameters.headings
        with self._lock:
            if key not in self._lengths:
                if len(self._lengths) >= _CACHED_LENGTHS:
                    self._lengths.clear()
                lengths = self._count_terms() @ np.array((key, 1.0))
                counted = lengths if self._alive is None else lengths[self._alive]
                mean = float(counted.mean()) if len(counted) else 1.0
                self._lengths[key] = lengths, mean or 1.0
            return self._lengths[key]


POSTINGS = "postings.safetensors"
Field = Literal["headings", "body"]
FIELDS: tuple[Field, Field] = ("headings", "body")
Terms = Sequence[str | tuple[str, int]]
PostingsRow = tuple[str, Terms, Terms, int, int]
"""Passage id, terms of its headings, terms of its text, and both counts without stop words.

Terms are pairs of term and position, or consecutive words.
"""
_ARRAYS = frozenset(
    {"terms", "term_starts", "starts", "rows", "lengths"}
    | {f"{field}_{what}" for field in FIELDS for what in ("counts", "positions", "starts")}
)


@dataclass(frozen=True, slots=True)
class _Occurrences:
    """Occurrences of terms in one field: term, row and position, (N,) each.

    Positions of one term in one row ascend.
    """

    terms: NDArray[np.int32]
    rows: NDArray[np.int32]
    positions: NDArray[np.int32]


def write_postings(folder: Path, rows: Iterable[PostingsRow]) -> None:
    """Write the postings of passages in their order.

    Equal rows give equal bytes. Memory use is about 100 bytes per occurrence.

    ``postings.safetensors`` is written to ``folder``, atomically; row numbers start at 0.

    Raises:
        ResourceError: If the disk is full.
    """
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    ids = {field: array("i") for field in FIELDS}
    positions = {field: array("i") for field in FIELDS}
    sizes = {field: array("i") for field in FIELDS}
    lengths = array("i")
    for _, headings, body, heading_count, body_count in rows:
        for field, terms in zip(FIELDS, (headings, body), strict=True):
            for number, item in enumerate(terms):
                if isinstance(item, str):
                    term, position = item, encode_position(number)
                else:
                    term, position = item
                ids[field].append(vocabulary[term])
                positions[field].append(position)
            sizes[field].append(len(terms))
        lengths.extend((heading_count, body_count))
    words, order = sort_terms(list(vocabulary))
    ranks = order.astype(np.int32)
    occurrences = {
        field: _Occurrences(
            ranks[_to_integers(ids[field])],
            np.repeat(np.arange(len(sizes[field]), dtype=np.int32), _to_integers(sizes[field])),
            _to_integers(positions[field]),
        )
        for field in FIELDS
    }
    _write_file(folder, words, occurrences, _to_integers(lengths).reshape(-1, 2))


def merge_postings(
    folder: Path, parts: Sequence[Postings], masks: Sequence[NDArray[np.bool_] | None]
) -> None:
    """Write the selected rows of several postings files as one, in order.

    The bytes equal those of ``write_postings`` for the same rows.

    ``folder`` is none of the parts'. A mask selects the rows to keep of its part, (N,) bool; None
    keeps all.

    Raises:
        ResourceError: If the disk is full.
    """
    row_masks = [
        np.ones(len(part), dtype=bool) if mask is None else mask
        for part, mask in zip(parts, masks, strict=True)
    ]
    offset, renumbered = 0, {field: list[_Occurrences]() for field in FIELDS}
    vocabulary: defaultdict[bytes, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    for part, mask in zip(parts, row_masks, strict=True):
        names = np.array([vocabulary[word] for word in part._table.words()], dtype=np.int32)
        numbers = (offset + np.cumsum(mask) - 1).astype(np.int32)
        for field in FIELDS:
            occurrences = part._occurrences(field)
            is_kept = mask[occurrences.rows]
            renumbered[field].append(
                _Occurrences(
                    names[occurrences.terms[is_kept]],
                    numbers[occurrences.rows[is_kept]],
                    occurrences.positions[is_kept],
                )
            )
        offset += int(mask.sum())
    used = np.zeros(len(vocabulary), dtype=bool)
    for field_occurrences in renumbered.values():
        for occurrences in field_occurrences:
            used[occurrences.terms] = True
    words = [word for word, number in vocabulary.items() if used[number]]
    ordered = sorted(words)
    ranks = np.zeros(len(vocabulary), dtype=np.int32)
    ranks[[vocabulary[word] for word in ordered]] = np.arange(len(ordered))
    joined = {field: _concatenate(renumbered[field], ranks) for field in FIELDS}
    lengths = [part.lengths[mask] for part, mask in zip(parts, row_masks, strict=True)]
    _write_file(folder, ordered, joined, np.concatenate([np.zeros((0, 2), np.int64), *lengths]))


class Postings:
    """One file of postings, memory-mapped; reads from any thread."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        """Wrap the arrays of the file at ``path``; callers use ``open``."""
        self.path = path
        self._arrays = arrays
        self._table = TermTable(arrays["terms"], arrays["term_starts"])
        self._starts = arrays["starts"]
        self._rows = arrays["rows"]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the postings of a folder; only the header is read.

        Raises:
            IntegrityError: If the file is missing, truncated, or its arrays are inconsistent.
        """
        path = folder / POSTINGS
        return cls(path, map_arrays(path, _ARRAYS, _is_consistent))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Number of terms in headings and in text without stop words, (N, 2)."""
        return self._arrays["lengths"]

    @property
    def term_count(self) -> int:
        """Number of distinct terms."""
        return len(self._starts) - 1

    def terms(self) -> Sequence[bytes]:
        """Return every term as UTF-8, by its number."""
        return list(self._table.words())

    def find(self, term: str) -> int | None:
        """Return the number of a term, or None if no row contains it."""
        return self._table.find(term)

    def look_up(self, number: int) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[Any]]:
        """Return the rows that contain a term, ascending, and its counts in headings and text."""
        span = slice(int(self._starts[number]), int(self._starts[number + 1]))
        arrays = self._arrays
        return self._rows[span], arrays["headings_counts"][span], arrays["body_counts"][span]

    def occurrences(self, number: int, field: Field) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and positions of every occurrence of a term in a field, both ascending."""
        span = slice(int(self._starts[number]), int(self._starts[number + 1]))
        starts = self._arrays[f"{field}_starts"]
        rows = np.repeat(self._rows[span], self._arrays[f"{field}_counts"][span])
        positions = self._arrays[f"{field}_positions"][
            int(starts[number]) : int(starts[number + 1])
        ]
        return rows.astype(np.int64), positions.astype(np.int64)

    def phrase(self, words: Sequence[PhraseWord | str], field: Field) -> NDArray[np.int64]:
        """Return the rows that contain consecutive words in a field, ascending.

        No words match nothing.
        """
        empty = np.zeros(0, dtype=np.int64)

        def occurrences(term: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            number = self.find(term)
            return (empty, empty) if number is None else self.occurrences(number, field)

        return find_phrase_rows(words, occurrences)

    def _occurrences(self, field: Field) -> _Occurrences:
        counts = self._arrays[f"{field}_counts"]
        terms = np.repeat(np.arange(self.term_count, dtype=np.int32), np.diff(self._starts))
        return _Occurrences(
            np.repeat(terms, counts),
            np.repeat(self._rows, counts),
            self._arrays[f"{field}_positions"].astype(np.int32),
        )


def _to_integers(values: array[int]) -> NDArray[np.int32]:
    return np.frombuffer(values, dtype=np.int32)


def _concatenate(parts: Sequence[_Occurrences], ranks: NDArray[np.int32]) -> _Occurrences:
    empty = np.zeros(0, dtype=np.int32)
    return _Occurrences(
        ranks[np.concatenate([empty, *(part.terms for part in parts)])],
        np.concatenate([empty, *(part.rows for part in parts)]),
        np.concatenate([empty, *(part.positions for part in parts)]),
    )


def _write_file(
    folder: Path,
    words: Sequence[bytes],
    occurrences: Mapping[Field, _Occurrences],
    lengths: NDArray[Any],
) -> None:
    count = max(1, len(lengths))
    borders = np.arange(len(words) + 1) * count
    arrays: dict[str, NDArray[Any]] = {
        **TermTable.pack(words),
        "lengths": lengths.astype(np.int32),
    }
    counted: dict[Field, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for field, field_occurrences in occurrences.items():
        keys = field_occurrences.terms.astype(np.int64) * count + field_occurrences.rows
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        arrays[f"{field}_positions"] = shrink_dtype(field_occurrences.positions[order])
        arrays[f"{field}_starts"] = np.searchsorted(keys, borders).astype(np.int64)
        firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        counted[field] = keys[firsts], np.diff(firsts, append=len(keys))
    pairs = np.union1d(*(keys for keys, _ in counted.values()))
    arrays["starts"] = np.searchsorted(pairs, borders).astype(np.int64)
    arrays["rows"] = (pairs % count).astype(np.int32)
    for field, (keys, times) in counted.items():
        counts = np.zeros(len(pairs), dtype=np.int64)
        counts[np.searchsorted(pairs, keys)] = times
        arrays[f"{field}_counts"] = shrink_dtype(counts)
    write_arrays(folder / POSTINGS, arrays)


def _is_consistent(arrays: Arrays) -> bool:
    """Return whether the sizes of the arrays are consistent."""
    pairs = len(arrays["rows"])
    ends = {"term_starts": len(arrays["terms"]), "starts": pairs}
    ends |= {f"{field}_starts": len(arrays[f"{field}_positions"]) for field in FIELDS}
    sizes = {len(arrays[name]) for name in ends}
    counts = {len(arrays[f"{field}_counts"]) for field in FIELDS}
    return (
        all(len(arrays[name]) and arrays[name][-1] == end for name, end in ends.items())
        and len(sizes) == 1
        and counts == {pairs}
        and arrays["lengths"].shape[1:] == (2,)
    )
