"""Keyword search: exact BM25 top-k over several files of postings.

The idf of a term and the average length come from the allowed rows alone, so that no statistic of
a row that must not be seen shows in a score. What a term adds to every row is computed when it is
first asked for, and kept while memory allows. Scores do not depend on how rows are spread over
files, on the mask or on what was asked before: a row's score is one sum in one order.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019; the variants as Kamphuis et al. 2020
("Which BM25 Do You Mean?", ECIR) and the library bm25s state them (``stillroom.text.bm25``).

Does not know: passages, documents, queries' syntax, who asks.

The file is in the safetensors format, read by memory-mapping it, so that opening costs the same for
a hundred passages and for a million. Terms lie sorted by their UTF-8 bytes in one blob and are
found by binary search. Headings and text are kept apart in counts, positions and lengths.

A position tells a term's word in its field and its part of it (``stillroom.rag.engines.phrases``),
stop words included: a phrase is found as the analyzer cuts it, and a phrase of headings may run
from one level of the path into the next.

Does not know: passages, documents, who may read what, or how terms are scored.
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
    BM25Variant,
    TermImpactCache,
    TermImpacts,
    compute_idf,
    default_delta,
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
    """Searches a view: files of postings one after another, and which of their rows are allowed."""

    def __init__(
        self,
        postings: Sequence[Postings],
        alive: NDArray[np.bool_] | None = None,
        *,
        cache: TermImpactCache | None = None,
    ) -> None:
        """Make a view; cheap until it is asked.

        Args:
            postings: Files of postings; the rows of the second follow those of the first.
            alive: Which rows there are as far as anybody who uses this view may know, (N,) bool;
                None for all. Document frequencies and lengths are counted over these.
            cache: Where to keep what terms add; by default one of its own.
        """
        self._postings = tuple(postings)
        self._offsets = np.cumsum([0, *map(len, self._postings)]).tolist()
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)
        self._cache = cache if cache is not None else TermImpactCache()
        self._frequencies: dict[str, int] = {}
        self._lengths: dict[tuple[float, float], tuple[NDArray[np.float64], float]] = {}
        self._lock = threading.Lock()
        self._mark = object()  # unlike id(), never another view's

    def __len__(self) -> int:
        """Return how many rows the view spans, those that are not allowed included."""
        return int(self._offsets[-1])

    @property
    def population(self) -> int:
        """How many rows are allowed."""
        return len(self) if self._alive is None else int(np.count_nonzero(self._alive))

    def document_frequency(self, term: str) -> int:
        """Return how many allowed rows hold the term in any field."""
        known = self._frequencies.get(term)
        if known is None:
            known = len(self._gather(term)[0])
            with self._lock:
                if len(self._frequencies) >= _CACHED_FREQUENCIES:
                    self._frequencies.clear()
                self._frequencies[term] = known
        return known

    def idf(self, term: str) -> float:
        """Return the term's inverse document frequency as Lucene has it, in nats; above 0."""
        return compute_idf("lucene", self.document_frequency(term), self.population)

    def search(
        self,
        terms: Mapping[str, float],
        k: int,
        *,
        k1: float = 1.2,
        b: float = 0.75,
        heading_weight: float = 1.0,
        variant: BM25Variant = "lucene",
        delta: float | None = None,
        field: Field | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the best ``k`` rows and their scores, best first, ties by row.

        Exact: the same as scoring every row and sorting. Rows that hold none of the terms, or only
        terms whose idf is 0 (Robertson's, of terms in more than half of the rows), are never found.

        Args:
            terms: Each term's weight, above 0; a plain query gives each term its count.
            k: How many rows; 1 or more.
            k1: How soon more occurrences stop counting; 0 or more.
            b: How much a row's length counts; 0 to 1.
            heading_weight: How many occurrences in the text one in a heading is worth.
            variant: Which BM25.
            delta: The lower bound that BM25L and BM25+ put under an occurrence; None for what their
                papers have, 0.5 and 1.
            field: Search one field alone, by its own lengths and frequencies; None for both.
            mask: Which rows may be found, (N,) bool; unlike ``alive`` it changes no score.
        """
        headings = 0.0 if field == "body" else 1.0 if field == "headings" else heading_weight
        body = 0.0 if field == "headings" else 1.0
        lower = default_delta(variant) if delta is None else delta
        weighing = BM25Parameters(k1, b, headings, body, variant, lower)
        weighted = [
            (term, weight, one)
            for term, weight in terms.items()
            if len((one := self._impacts(term, weighing)).rows)
        ]
        rows, scores = rank_rows(weighted, len(self), k, mask)
        return rows, scores + sum(weight * one.absent for _, weight, one in weighted)

    def phrase(
        self, words: Sequence[PhraseWord | str], *, field: Field = "body"
    ) -> NDArray[np.int64]:
        """Return the allowed rows that hold words one after another in a field, ascending.

        Args:
            words: As the analyzer cuts the phrase, stop words included; none find nothing.
            field: Where to look.
        """
        kept: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        for part, offset in zip(self._postings, self._offsets, strict=False):
            kept.append(part.phrase(words, field) + offset)
        rows = np.concatenate(kept)
        return rows if self._alive is None else rows[self._alive[rows]]

    def _gather(self, term: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the allowed rows that hold a term, and its counts in headings and in text."""
        found = []
        for part, offset in zip(self._postings, self._offsets, strict=False):
            number = part.find(term)
            if number is not None:
                held, *counts = part.look_up(number)
                found.append((held.astype(np.int64) + offset, *counts))
        if not found:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        rows, headings, body = (
            np.concatenate(each, dtype=np.int64) for each in zip(*found, strict=True)
        )
        if self._alive is not None:
            keep = self._alive[rows]
            rows, headings, body = rows[keep], headings[keep], body[keep]
        return rows, headings, body

    def _impacts(self, term: str, weighing: BM25Parameters) -> TermImpacts:
        key = (self._mark, term, weighing)
        known = self._cache.get(key)
        if known is None:
            known = self._weigh(term, weighing)
            self._cache.put(key, known)
        return known

    def _weigh(self, term: str, how: BM25Parameters) -> TermImpacts:
        rows, headings, body = self._gather(term)
        frequency = headings * how.headings + body * how.body
        if not (how.headings > 0 and how.body > 0):
            rows, frequency = rows[frequency > 0], frequency[frequency > 0]
        lengths, mean = self._relative_lengths(how)
        return weigh_term(how, rows, frequency, lengths[rows] / mean, self.population)

    def _count_terms(self) -> NDArray[np.int64]:
        """Return how many terms each row has in headings and in text, (N, 2)."""
        none = np.zeros((0, 2), dtype=np.int64)
        return np.concatenate([none, *(part.lengths for part in self._postings)])

    def _relative_lengths(self, how: BM25Parameters) -> tuple[NDArray[np.float64], float]:
        key = (how.headings, how.body)
        with self._lock:
            if key not in self._lengths:
                if len(self._lengths) >= _CACHED_LENGTHS:
                    self._lengths.clear()
                lengths = self._count_terms() @ np.array(key)
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

Terms have their positions, or are words one after another.
"""


_ARRAYS = frozenset(
    {"terms", "term_starts", "starts", "rows", "lengths"}
    | {f"{field}_{what}" for field in FIELDS for what in ("counts", "positions", "starts")}
)


@dataclass(frozen=True, slots=True)
class _Occurrences:
    """One field's occurrences of terms: which term in which row at which position, (N,) each.

    Of one term in one row, positions ascend.
    """

    terms: NDArray[np.int32]
    rows: NDArray[np.int32]
    positions: NDArray[np.int32]


def write_postings(folder: Path, rows: Iterable[PostingsRow]) -> int:
    """Write the postings of passages in their order; return how many rows there are.

    Equal rows give equal bytes. Meanwhile it holds about 100 bytes an occurrence in memory.

    Args:
        folder: Where ``postings.safetensors`` is written, atomically.
        rows: One for each passage, in order; row numbers count from 0.

    Raises:
        ResourceError: If the disk is full.
    """
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    ids = {field: array("i") for field in FIELDS}
    spots = {field: array("i") for field in FIELDS}
    sizes = {field: array("i") for field in FIELDS}
    lengths = array("i")
    for _, headings, body, heading_count, body_count in rows:
        for field, terms in zip(FIELDS, (headings, body), strict=True):
            for at, one in enumerate(terms):
                if isinstance(one, str):
                    term, spot = one, encode_position(at)
                else:
                    term, spot = one
                ids[field].append(vocabulary[term])
                spots[field].append(spot)
            sizes[field].append(len(terms))
        lengths.extend((heading_count, body_count))
    words, order = sort_terms(list(vocabulary))
    ranks = order.astype(np.int32)
    occurrences = {
        field: _Occurrences(
            ranks[_to_integers(ids[field])],
            np.repeat(np.arange(len(sizes[field]), dtype=np.int32), _to_integers(sizes[field])),
            _to_integers(spots[field]),
        )
        for field in FIELDS
    }
    _write_file(folder, words, occurrences, _to_integers(lengths).reshape(-1, 2))
    return len(lengths) // 2


def merge_postings(
    folder: Path, parts: Sequence[Postings], kept: Sequence[NDArray[np.bool_] | None]
) -> int:
    """Write the postings of several files' kept rows, one after another, as one file.

    The bytes are those that ``write_postings`` gives for the same rows.

    Args:
        folder: Where ``postings.safetensors`` is written; none of the parts' own folders.
        parts: What to join, in order.
        kept: For each part which rows to keep, (N,) bool, or None for all.

    Returns:
        How many rows there are.

    Raises:
        ResourceError: If the disk is full.
    """
    masks = [
        np.ones(len(part), dtype=bool) if mask is None else mask
        for part, mask in zip(parts, kept, strict=True)
    ]
    offset, moved = 0, {field: list[_Occurrences]() for field in FIELDS}
    vocabulary: defaultdict[bytes, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    for part, mask in zip(parts, masks, strict=True):
        names = np.array([vocabulary[word] for word in part._table.words()], dtype=np.int32)
        numbers = (offset + np.cumsum(mask) - 1).astype(np.int32)
        for field in FIELDS:
            one = part._occurrences(field)
            stays = mask[one.rows]
            moved[field].append(
                _Occurrences(
                    names[one.terms[stays]], numbers[one.rows[stays]], one.positions[stays]
                )
            )
        offset += int(mask.sum())
    used = np.zeros(len(vocabulary), dtype=bool)
    for several in moved.values():
        for one in several:
            used[one.terms] = True
    words = [word for word, number in vocabulary.items() if used[number]]
    ordered = sorted(words)
    ranks = np.zeros(len(vocabulary), dtype=np.int32)
    ranks[[vocabulary[word] for word in ordered]] = np.arange(len(ordered))
    joined = {field: _concatenate(moved[field], ranks) for field in FIELDS}
    lengths = [part.lengths[mask] for part, mask in zip(parts, masks, strict=True)]
    _write_file(folder, ordered, joined, np.concatenate([np.zeros((0, 2), np.int64), *lengths]))
    return offset


class Postings:
    """One file of postings, memory-mapped; reads from any thread."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        """Hold the arrays of the file at ``path``; callers use ``open``."""
        self.path = path
        self._arrays = arrays
        self._table = TermTable(arrays["terms"], arrays["term_starts"])
        self._starts = arrays["starts"]
        self._rows = arrays["rows"]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the postings of a folder; nothing but the header is read.

        Raises:
            IntegrityError: If the file is missing, cut off or not made of the arrays it must have.
        """
        path = folder / POSTINGS
        return cls(path, map_arrays(path, _ARRAYS, _is_consistent))

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.lengths)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Terms of headings and of text without stop words, (N, 2)."""
        return self._arrays["lengths"]

    @property
    def term_count(self) -> int:
        """How many different terms there are."""
        return len(self._starts) - 1

    def terms(self) -> Sequence[bytes]:
        """Return every term as UTF-8, by its number."""
        return list(self._table.words())

    def find(self, term: str) -> int | None:
        """Return the number of a term, or None where no row holds it."""
        return self._table.find(term)

    def look_up(self, number: int) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[Any]]:
        """Return the rows that hold a term, ascending, and its counts in headings and in text."""
        span = slice(int(self._starts[number]), int(self._starts[number + 1]))
        arrays = self._arrays
        return self._rows[span], arrays["headings_counts"][span], arrays["body_counts"][span]

    def occurrences(self, number: int, field: Field) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and positions of every occurrence of a term in a field, both ascending."""
        span = slice(int(self._starts[number]), int(self._starts[number + 1]))
        starts = self._arrays[f"{field}_starts"]
        rows = np.repeat(self._rows[span], self._arrays[f"{field}_counts"][span])
        places = self._arrays[f"{field}_positions"][int(starts[number]) : int(starts[number + 1])]
        return rows.astype(np.int64), places.astype(np.int64)

    def phrase(self, words: Sequence[PhraseWord | str], field: Field) -> NDArray[np.int64]:
        """Return the rows that hold words one after another in a field, ascending.

        Args:
            words: As the analyzer cuts the phrase, stop words included; none find nothing.
            field: Where to look.
        """
        nothing = np.zeros(0, dtype=np.int64)

        def occurrences(term: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            number = self.find(term)
            return (nothing, nothing) if number is None else self.occurrences(number, field)

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
    held: dict[Field, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for field, one in occurrences.items():
        keys = one.terms.astype(np.int64) * count + one.rows
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        arrays[f"{field}_positions"] = shrink_dtype(one.positions[order])
        arrays[f"{field}_starts"] = np.searchsorted(keys, borders).astype(np.int64)
        firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        held[field] = keys[firsts], np.diff(firsts, append=len(keys))
    pairs = np.union1d(*(keys for keys, _ in held.values()))
    arrays["starts"] = np.searchsorted(pairs, borders).astype(np.int64)
    arrays["rows"] = (pairs % count).astype(np.int32)
    for field, (keys, times) in held.items():
        counts = np.zeros(len(pairs), dtype=np.int64)
        counts[np.searchsorted(pairs, keys)] = times
        arrays[f"{field}_counts"] = shrink_dtype(counts)
    write_arrays(folder / POSTINGS, arrays)


def _is_consistent(arrays: Arrays) -> bool:
    """Return whether the arrays fit each other where they are joined."""
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
