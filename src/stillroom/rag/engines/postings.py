"""Postings: which rows hold which terms, how often and where; one immutable file.

The file is in the safetensors format, read by memory-mapping it, so that opening costs the same for
a hundred passages and for a million. Terms lie sorted by their UTF-8 bytes in one blob and are
found by binary search. Headings and text are kept apart in counts, positions and lengths.

A position tells a term's word in its field and its part of it (``stillroom.rag.engines.phrases``),
stop words included: a phrase is found as the analyzer cuts it, and a phrase of headings may run
from one level of the path into the next.

Does not know: passages, documents, who may read what, or how terms are scored.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from stillroom.rag.engines.arrays import Arrays, map_arrays, shrink, write_arrays
from stillroom.rag.engines.phrases import PhraseWord, find_phrase, place
from stillroom.rag.engines.term_table import TermTable, sort_terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FIELDS",
    "POSTINGS",
    "Field",
    "Postings",
    "PostingsRow",
    "merge_postings",
    "write_postings",
]

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
                    term, spot = one, place(at)
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
            ranks[_integers(ids[field])],
            np.repeat(np.arange(len(sizes[field]), dtype=np.int32), _integers(sizes[field])),
            _integers(spots[field]),
        )
        for field in FIELDS
    }
    _write(folder, words, occurrences, _integers(lengths).reshape(-1, 2))
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
    joined = {field: _join(moved[field], ranks) for field in FIELDS}
    lengths = [part.lengths[mask] for part, mask in zip(parts, masks, strict=True)]
    _write(folder, ordered, joined, np.concatenate([np.zeros((0, 2), np.int64), *lengths]))
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
        return cls(path, map_arrays(path, _ARRAYS, _fits))

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

        return find_phrase(words, occurrences)

    def _occurrences(self, field: Field) -> _Occurrences:
        counts = self._arrays[f"{field}_counts"]
        terms = np.repeat(np.arange(self.term_count, dtype=np.int32), np.diff(self._starts))
        return _Occurrences(
            np.repeat(terms, counts),
            np.repeat(self._rows, counts),
            self._arrays[f"{field}_positions"].astype(np.int32),
        )


def _integers(values: array[int]) -> NDArray[np.int32]:
    return np.frombuffer(values, dtype=np.int32)


def _join(parts: Sequence[_Occurrences], ranks: NDArray[np.int32]) -> _Occurrences:
    empty = np.zeros(0, dtype=np.int32)
    return _Occurrences(
        ranks[np.concatenate([empty, *(part.terms for part in parts)])],
        np.concatenate([empty, *(part.rows for part in parts)]),
        np.concatenate([empty, *(part.positions for part in parts)]),
    )


def _write(
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
        arrays[f"{field}_positions"] = shrink(one.positions[order])
        arrays[f"{field}_starts"] = np.searchsorted(keys, borders).astype(np.int64)
        firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        held[field] = keys[firsts], np.diff(firsts, append=len(keys))
    pairs = np.union1d(*(keys for keys, _ in held.values()))
    arrays["starts"] = np.searchsorted(pairs, borders).astype(np.int64)
    arrays["rows"] = (pairs % count).astype(np.int32)
    for field, (keys, times) in held.items():
        counts = np.zeros(len(pairs), dtype=np.int64)
        counts[np.searchsorted(pairs, keys)] = times
        arrays[f"{field}_counts"] = shrink(counts)
    write_arrays(folder / POSTINGS, arrays)


def _fits(arrays: Arrays) -> bool:
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
