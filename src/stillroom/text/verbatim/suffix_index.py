"""Suffix array over the words of many texts, in a folder of memory-mapped arrays.

Words are those of ``stillroom.text.unicode.locate_words``. A word is a number of four bytes, most
significant first, so that comparing bytes compares words; 0 ends each text and is no word. Opening
reads nothing; a query touches a few pages per word.

Source: Manber and Myers 1993, SIAM J. Comput. 22(5) (suffix arrays), sorted by libdivsufsort
through pydivsufsort.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.text.unicode import locate_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IndexedText", "Occurrences", "SuffixIndex", "WordSpan", "build_suffix_index"]

_WIDTH = 4  # bytes of a word
_SORTED_WIDTH = 3  # of them are sorted: 16 million different words are enough
_FIRST_REACH = 32  # words compared at first; doubled while they match
_MAX_COUNTED = 1 << 16  # occurrences of a span that are looked at; more are only counted


@dataclass(frozen=True, slots=True)
class IndexedText:
    """A text to index: its owner (a document, a record), the owner's group, and more facts.

    ``facts`` are plain JSON values, given back by ``SuffixIndex.read_facts``.
    """

    text: str
    owner: str
    group: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A span that occurs: ``start`` and ``end`` count words of the query.

    ``chance`` is how often it would occur in texts of the same words in random order.
    """

    start: int
    end: int
    chance: float


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Texts with a span, in their order: one row each, and the number of all places.

    ``starts`` and ``ends`` are characters of the first place in a text, ``counts`` the places in
    it that were looked at.
    """

    texts: NDArray[Any]
    owners: NDArray[Any]
    groups: NDArray[Any]
    starts: NDArray[Any]
    ends: NDArray[Any]
    counts: NDArray[Any]
    total: int


def build_suffix_index(folder: Path, texts: Iterable[IndexedText]) -> None:
    """Write the suffix array of texts into an empty folder.

    Takes about 41 bytes of memory per word at its peak, and 16.5 on disk (measured).

    Raises:
        MissingExtraError: If pydivsufsort is not installed.
        ResourceError: If the texts have more different words than a word has numbers.
    """
    with MissingExtraError.guard("pydivsufsort", "trace", "a verbatim trace"):
        from pydivsufsort import divsufsort
    numbers: dict[str, int] = {}
    words, starts, ends = array("I"), array("I"), array("I")
    text_starts, owners, lines = array("Q"), array("Q"), array("Q", [0])
    groups = array("B")
    with (folder / "texts.jsonl").open("wb") as file:
        for text in texts:
            text_starts.append(len(words))
            owners.append(_hash_owner(text.owner))
            groups.append(text.group)
            for word, start, end in locate_words(text.text):
                words.append(numbers.setdefault(word, len(numbers) + 1))
                starts.append(start)
                ends.append(end)
            words.append(0)
            starts.append(0)
            ends.append(0)
            lines.append(lines[-1] + file.write(json.dumps(text.facts).encode() + b"\n"))
    if len(numbers) >= 256**_SORTED_WIDTH:
        raise ResourceError(
            f"the texts have {len(numbers)} different words",
            code="text.too-many-words",
            expected=f"fewer than {256**_SORTED_WIDTH}",
            next="trace within a part of them: an index, or a set of records",
        )
    ranked = sorted((word.encode(), number) for word, number in numbers.items())
    rank = np.zeros(len(ranked) + 1, ">u4")
    rank[[number for _, number in ranked]] = np.arange(1, len(ranked) + 1)
    tokens = rank[np.frombuffer(words, np.uint32)] if words else np.zeros(0, ">u4")
    arrays = {
        "tokens": tokens.view(np.uint8),
        "suffixes": _sort_suffixes(tokens, divsufsort),
        "counts": np.bincount(tokens, minlength=len(ranked) + 1),
        "words": np.frombuffer(b"".join(word for word, _ in ranked), np.uint8),
        "word_ends": np.cumsum([0, *(len(word) for word, _ in ranked)], dtype=np.int64),
        "starts": np.frombuffer(starts, np.uint32),
        "ends": np.frombuffer(ends, np.uint32),
        "text_starts": np.frombuffer(text_starts, np.uint64).astype(np.int64),
        "owners": np.frombuffer(owners, np.uint64),
        "groups": np.frombuffer(groups, np.uint8),
        "lines": np.frombuffer(lines, np.uint64).astype(np.int64),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)


def _hash_owner(owner: str) -> int:
    return int.from_bytes(blake3(owner.encode()).digest(length=8), "big")


def _sort_suffixes(tokens: NDArray[np.uint32], divsufsort: Any) -> NDArray[Any]:
    """Return the starts of the suffixes in order; in 64 bits if 32 do not suffice."""
    if not len(tokens):
        return np.zeros(0, np.int32)
    narrow = tokens.view(np.uint8).reshape(-1, _WIDTH)[:, _WIDTH - _SORTED_WIDTH :]
    order = divsufsort(np.ascontiguousarray(narrow).reshape(-1))
    order = order[order % _SORTED_WIDTH == 0]  # a suffix starts at a word
    order //= _SORTED_WIDTH
    kind: type[np.signedinteger[Any]] = np.int32 if len(tokens) < 2**31 else np.int64
    return np.asarray(order, kind)


class SuffixIndex:
    """An opened suffix array of texts; safe for several threads."""

    def __init__(self, folder: Path) -> None:
        """Map the arrays of a folder.

        Raises:
            OSError: If one is missing.
            ValueError: If one is damaged.
        """

        def load(name: str) -> NDArray[Any]:
            path = folder / f"{name}.npy"
            is_small = path.stat().st_size < 1 << 16  # an empty array cannot be mapped
            values: NDArray[Any] = np.load(path, None if is_small else "r", allow_pickle=False)
            return values

        self._folder = folder
        self._tokens, self._words = load("tokens").data, load("words").data
        self._suffixes, self._word_ends = load("suffixes").data, load("word_ends").data
        self._counts = load("counts")
        self._starts, self._ends = load("starts"), load("ends")
        self._text_starts, self._owners = load("text_starts"), load("owners")
        self._groups, self._lines = load("groups"), load("lines")

    @property
    def texts(self) -> int:
        """Number of texts."""
        return len(self._text_starts)

    @property
    def words(self) -> int:
        """Number of words of all texts."""
        return len(self._suffixes) - self.texts

    def find_owned(self, owner: str) -> NDArray[Any]:
        """Return the numbers of an owner's texts, sorted."""
        return np.flatnonzero(np.asarray(self._owners) == np.uint64(_hash_owner(owner)))

    def find_spans(self, words: Sequence[str], *, without: NDArray[Any]) -> list[WordSpan]:
        """Return the maximal spans of a text that occur, from the first to the last.

        A span is maximal if no longer one that contains it occurs.
        """
        numbers = [self._number(word) for word in words]
        query = b"".join(number.to_bytes(_WIDTH, "big") for number in numbers)
        spans: list[WordSpan] = []
        reached = 0
        for start, number in enumerate(numbers):
            if not number:
                continue
            reach = max(reached - start, 0) + _FIRST_REACH
            end = start + self._longest(query, start, reach, without)
            if end > reached:
                spans.append(WordSpan(start, end, self._expect(numbers[start:end])))
                reached = end
        return spans

    def find_occurrences(self, words: Sequence[str], *, without: NDArray[Any]) -> Occurrences:
        """Return the places of a span; of more than 65,536, that many."""
        prefix = b"".join(self._number(word).to_bytes(_WIDTH, "big") for word in words)
        low = self._bisect(bisect_left, prefix, 0)
        high = self._bisect(bisect_right, prefix, low)
        places = np.sort(np.asarray(self._suffixes[low : min(high, low + _MAX_COUNTED)]))
        numbers = self._find_text(places)
        is_searched = ~np.isin(numbers, without)
        places, numbers = places[is_searched], numbers[is_searched]
        texts, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        places = places[first]
        return Occurrences(
            texts,
            self._owners[texts],
            self._groups[texts],
            self._starts[places],
            self._ends[places + len(words) - 1],
            counts,
            high - low - int((~is_searched).sum()),
        )

    def read_facts(self, text: int) -> Mapping[str, Any]:
        """Return what is known of a text."""
        with (self._folder / "texts.jsonl").open("rb") as file:
            file.seek(int(self._lines[text]))
            facts: Mapping[str, Any] = json.loads(file.readline())
        return facts

    def _number(self, word: str) -> int:
        """Return a word's number; 0 if it does not occur."""
        wanted, ends = word.encode(), self._word_ends

        def read(i: int) -> bytes:
            return self._words[ends[i] : ends[i + 1]].tobytes()

        place = bisect_left(range(len(ends) - 1), wanted, key=read)
        return place + 1 if place < len(ends) - 1 and read(place) == wanted else 0

    def _bisect(self, search: Any, prefix: bytes, low: int) -> int:
        """Return where a prefix belongs among the suffixes."""
        tokens, suffixes, size = self._tokens, self._suffixes, len(prefix)

        def read(i: int) -> bytes:
            start = suffixes[i] * _WIDTH
            return tokens[start : start + size].tobytes()

        place: int = search(range(len(suffixes)), prefix, low, key=read)
        return place

    def _longest(self, query: bytes, start: int, reach: int, without: NDArray[Any]) -> int:
        """Return how many words of the query from ``start`` occur together."""
        left = len(query) // _WIDTH - start
        while True:
            reach = min(reach, left)
            prefix = query[start * _WIDTH : (start + reach) * _WIDTH]
            place = self._bisect(bisect_left, prefix, 0)
            before, after = place - 1, place
            if len(without):
                before, after = self._skip(before, -1, without), self._skip(after, 1, without)
            neighbors = (i for i in (before, after) if 0 <= i < len(self._suffixes))
            longest = max((self._count_common(prefix, i) for i in neighbors), default=0)
            if longest < reach or reach == left:
                return longest
            reach *= 2

    def _find_text(self, places: Any) -> Any:
        """Return the number of the text at each place."""
        return np.searchsorted(self._text_starts, places, "right") - 1

    def _skip(self, place: int, step: int, without: NDArray[Any]) -> int:
        """Return the next suffix of a text that is searched."""
        while 0 <= place < len(self._suffixes):
            if self._find_text(self._suffixes[place]) not in without:
                break
            place += step
        return place

    def _count_common(self, prefix: bytes, place: int) -> int:
        """Return how many words a query shares with a suffix's beginning."""
        start = self._suffixes[place] * _WIDTH
        stored = self._tokens[start : start + len(prefix)].tobytes()
        for i in range(0, len(stored), _WIDTH):
            word = prefix[i : i + _WIDTH]
            if stored[i : i + _WIDTH] != word or word == bytes(_WIDTH):
                return i // _WIDTH
        return len(stored) // _WIDTH

    def _expect(self, numbers: Sequence[int]) -> float:
        """Return how often a span would occur by chance."""
        total = math.log(self.words)
        return math.exp(
            total + sum(math.log(float(self._counts[number])) - total for number in numbers)
        )
