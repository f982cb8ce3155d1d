"""Word n-gram tables over many texts, and a character n-gram language model.

Each order of the language model is interpolated with the one below by Witten and Bell's weight,
which grows with the number of distinct following characters; the lowest is uniform over all code
points. On small texts it learns spelling, common words and names, as a small neural model does in
its first steps.

Source: Witten and Bell 1991, doi:10.1109/18.87000 (their method C), interpolated as in Chen and
Goodman 1999, doi:10.1006/csla.1999.0128.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "CharacterNGramModel",
    "NGramCounts",
    "NGramSample",
    "NGramTable",
    "TokenizedTexts",
    "WordVocabulary",
]


Ints = npt.NDArray[np.int64]
WordIds = npt.NDArray[np.int32]
_MAX_INT64 = 2**63 - 1


class WordVocabulary:
    """Vocabulary of words with numbers in order of first occurrence."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, words: Iterable[str]) -> WordIds:
        """Return the numbers of a text's words, adding unknown words."""
        numbers = self._numbers
        return np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int32)

    def find(self, words: Iterable[str]) -> Ints:
        """Return the numbers of the known ones of some words, unordered."""
        known = self._numbers
        return np.array([known[word] for word in words if word in known], dtype=np.int64)

    def words(self) -> list[str]:
        """Return the words in order of their numbers."""
        return list(self._numbers)


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Texts split into words, as numbers of one vocabulary."""

    vocabulary: WordVocabulary
    texts: Sequence[WordIds]

    @classmethod
    def of(cls, texts: Iterable[Iterable[str]]) -> TokenizedTexts:
        """Tokenize texts."""
        vocabulary = WordVocabulary()
        return cls(vocabulary, [vocabulary.number(words) for words in texts])

    def __getitem__(self, part: slice) -> TokenizedTexts:
        return TokenizedTexts(self.vocabulary, self.texts[part])

    def count(self) -> int:
        """Return the number of words in all texts."""
        return sum(map(len, self.texts))

    def flat(self) -> Ints:
        """Return the words of all texts, concatenated."""
        if not self.texts:
            return np.zeros(0, dtype=np.int64)
        return np.concatenate(self.texts).astype(np.int64)


class NGramTable:
    """All n-grams of some texts up to an order; equal n-grams have equal numbers."""

    def __init__(self, tokenized: TokenizedTexts, order: int) -> None:
        size = max(len(tokenized.vocabulary), 1)
        self.lengths: Ints = np.array([len(text) for text in tokenized.texts], dtype=np.int64)
        flat = tokenized.flat()
        remaining = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(flat))
        self._grams: list[Ints] = []
        self._bounds: list[Ints] = []
        positions, grams, bound = np.arange(len(flat)), flat, size
        for n in range(1, order + 1):
            if n > 1:
                is_inside = remaining[positions] >= n  # words to the text's end
                positions, grams = positions[is_inside], grams[is_inside]
                if bound * size > _MAX_INT64:  # else the number encodes all of the words
                    grams = np.unique(grams, return_inverse=True)[1].reshape(-1).astype(np.int64)
                    bound = len(flat)
                grams = grams * size + flat[positions + n - 1]
                bound *= size
            counts = np.maximum(self.lengths - n + 1, 0)
            self._grams.append(grams)
            self._bounds.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def of(self, drawn: Sequence[int], n: int) -> tuple[Ints, Ints]:
        """Return the n-grams of some texts, and the draw's index of each one's text (K,), (K,)."""
        grams, bounds = self._grams[n - 1], self._bounds[n - 1]
        if not len(drawn):
            return grams[:0], grams[:0]
        ngrams = np.concatenate([grams[bounds[index] : bounds[index + 1]] for index in drawn])
        sizes = bounds[np.array(drawn) + 1] - bounds[np.array(drawn)]
        return ngrams, np.repeat(np.arange(len(drawn)), sizes)


@dataclass(frozen=True, slots=True)
class NGramCounts:
    """Distinct n-grams of each text, with equal ones adjacent.

    ``text_index`` is the text's index in the draw, (K,); ``occurrences`` the count in that text,
    (K,); ``group`` the n-gram's index, (K,); ``starts`` the start of each n-gram's rows, (G,).
    """

    text_index: Ints
    occurrences: Ints
    group: Ints
    starts: Ints

    @property
    def total(self) -> int:
        """Number of n-grams, with repetitions."""
        return int(self.occurrences.sum())

    def count_texts(self) -> Ints:
        """Return the number of texts with each n-gram, (G,)."""
        return np.diff(self.starts, append=len(self.text_index))

    def max_elsewhere(self) -> Ints:
        """Return, for each text's count of an n-gram, the highest in another text (else 0)."""
        if not len(self.starts):
            return self.occurrences
        highest = np.maximum.reduceat(self.occurrences, self.starts)
        is_top = self.occurrences == highest[self.group]
        below = np.maximum.reduceat(np.where(is_top, 0, self.occurrences), self.starts)
        is_shared = np.add.reduceat(is_top.astype(np.int64), self.starts) > 1
        elsewhere = np.where(is_shared, highest, below)
        return np.where(is_top, elsewhere[self.group], highest[self.group])


class NGramSample:
    """One draw of the texts, with counts cached for several figures."""

    def __init__(self, grams: NGramTable, drawn: Sequence[int]) -> None:
        self.drawn = drawn
        self._grams = grams
        self._with_words = [index for index in drawn if grams.lengths[index]]
        self._counts_by_order: dict[int, NGramCounts] = {}

    @property
    def lengths(self) -> Ints:
        """Word counts of the drawn texts that have words, (M,)."""
        return self._grams.lengths[self._with_words]

    def words(self) -> Ints:
        """Return the numbers of the words of all drawn texts."""
        return self._grams.of(self.drawn, 1)[0]

    def counts(self, n: int) -> NGramCounts:
        """Return the n-gram counts of the drawn texts that have words."""
        if n not in self._counts_by_order:
            self._counts_by_order[n] = _count_ngrams(*self._grams.of(self._with_words, n))
        return self._counts_by_order[n]


def _count_ngrams(grams: Ints, text_indices: Ints) -> NGramCounts:
    """Count n-grams whose text_indices are sorted."""
    order = np.argsort(grams, kind="stable")  # keeps the text_indices of each in order
    grams, text_indices = grams[order], text_indices[order]
    is_new = np.ones(len(grams), dtype=bool)
    is_new[1:] = grams[1:] != grams[:-1]
    is_first = is_new.copy()
    is_first[1:] |= text_indices[1:] != text_indices[:-1]
    first = np.flatnonzero(is_first)
    is_new = is_new[first]
    return NGramCounts(
        text_indices[first],
        np.diff(first, append=len(grams)),
        np.cumsum(is_new) - 1,
        np.flatnonzero(is_new),
    )


_BEGIN, _END = "\ue000", "\ue001"
"""Markers of start and end of a text, in the private use area."""

_ALPHABET_SIZE = 0x110000


class CharacterNGramModel:
    """Character n-gram model: the next character given those before it."""

    def __init__(self, texts: Iterable[str], *, order: int = 5) -> None:
        self._order = order
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            marked = self._mark(text)
            for position in range(order - 1, len(marked)):
                character = marked[position]
                for length in range(order):
                    counts[marked[position - length : position]][character] += 1
        self._counts = dict(counts)
        self._totals = {context: followers.total() for context, followers in counts.items()}

    def bits(self, text: str) -> float:
        """Return the code length of a text and its end, in bits."""
        marked, first = self._mark(text), self._order - 1
        return -math.fsum(
            math.log2(self._chance(marked[position - first : position], marked[position]))
            for position in range(first, len(marked))
        )

    def _chance(self, before: str, character: str) -> float:
        chance = 1 / _ALPHABET_SIZE
        for start in range(len(before), -1, -1):
            counts = self._counts.get(before[start:])
            if counts is None:  # longer contexts of an unseen one are unseen too
                break
            kinds, total = len(counts), self._totals[before[start:]]
            chance = (counts[character] + kinds * chance) / (total + kinds)
        return chance

    def _mark(self, text: str) -> str:
        return _BEGIN * (self._order - 1) + text + _END
