"""Word n-gram tables over many texts, and a character n-gram language model.

Each order is interpolated with the one below by Witten and Bell's weight, which grows with how many
different characters have followed; below the lowest, all code points are alike. Small texts teach
it what a small model would learn of them in its first steps: spelling, common words, names.

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
    """Words as numbers, in the order of their coming."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many different words there are."""
        return len(self._numbers)

    def number(self, words: Iterable[str]) -> WordIds:
        """Return the numbers of a text's words, new ones for those that were not met before."""
        numbers = self._numbers
        return np.array([numbers.setdefault(one, len(numbers)) for one in words], dtype=np.int32)

    def find(self, words: Iterable[str]) -> Ints:
        """Return the numbers of those words that were met before, in no order."""
        known = self._numbers
        return np.array([known[one] for one in words if one in known], dtype=np.int64)

    def words(self) -> list[str]:
        """Return the words, each at its number."""
        return list(self._numbers)


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Texts cut into words, which are numbers of one lexicon."""

    lexicon: WordVocabulary
    texts: Sequence[WordIds]

    @classmethod
    def of(cls, texts: Iterable[Iterable[str]]) -> TokenizedTexts:
        """Number the words of texts."""
        lexicon = WordVocabulary()
        return cls(lexicon, [lexicon.number(words) for words in texts])

    def __getitem__(self, part: slice) -> TokenizedTexts:
        """Return some of the texts."""
        return TokenizedTexts(self.lexicon, self.texts[part])

    def count(self) -> int:
        """Return how many words all texts have together."""
        return sum(map(len, self.texts))

    def flat(self) -> Ints:
        """Return the words of all texts, one text after another."""
        if not self.texts:
            return np.zeros(0, dtype=np.int64)
        return np.concatenate(self.texts).astype(np.int64)


class NGramTable:
    """All n-grams of some texts up to an order; equal n-grams have one number."""

    def __init__(self, cut: TokenizedTexts, order: int) -> None:
        """Number the n-grams of texts.

        Args:
            cut: The texts.
            order: The longest n-gram.
        """
        size = max(len(cut.lexicon), 1)
        self.lengths: Ints = np.array([len(text) for text in cut.texts], dtype=np.int64)
        flat = cut.flat()
        left = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(flat))
        self._grams: list[Ints] = []
        self._bounds: list[Ints] = []
        at, grams, below = np.arange(len(flat)), flat, size
        for n in range(1, order + 1):
            if n > 1:
                goes_on = left[at] >= n  # words to the text's end
                at, grams = at[goes_on], grams[goes_on]
                if below * size > _MAX_INT64:  # else the number says all of the words by itself
                    grams = np.unique(grams, return_inverse=True)[1].reshape(-1).astype(np.int64)
                    below = len(flat)
                grams = grams * size + flat[at + n - 1]
                below *= size
            counts = np.maximum(self.lengths - n + 1, 0)
            self._grams.append(grams)
            self._bounds.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def of(self, drawn: Sequence[int], n: int) -> tuple[Ints, Ints]:
        """Return the n-grams of some texts, and of which text of the draw each is (K,), (K,)."""
        grams, bounds = self._grams[n - 1], self._bounds[n - 1]
        if not len(drawn):
            return grams[:0], grams[:0]
        found = np.concatenate([grams[bounds[one] : bounds[one + 1]] for one in drawn])
        sizes = bounds[np.array(drawn) + 1] - bounds[np.array(drawn)]
        return found, np.repeat(np.arange(len(drawn)), sizes)


@dataclass(frozen=True, slots=True)
class NGramCounts:
    """Each different n-gram of each text once, those that are equal side by side.

    ``owner`` is whose, a place among the texts, (K,); ``often`` how often it holds it, (K,);
    ``group`` which n-gram it is, (K,); ``starts`` where each of these begins, (G,).
    """

    owner: Ints
    often: Ints
    group: Ints
    starts: Ints

    @property
    def total(self) -> int:
        """How many n-grams there are, equal ones counted each."""
        return int(self.often.sum())

    def holders(self) -> Ints:
        """Return in how many texts each n-gram is, (G,)."""
        return np.diff(self.starts, append=len(self.owner))

    def most_elsewhere(self) -> Ints:
        """Return, for each text's count of an n-gram, the highest in another text (else 0)."""
        if not len(self.starts):
            return self.often
        highest = np.maximum.reduceat(self.often, self.starts)
        is_top = self.often == highest[self.group]
        below = np.maximum.reduceat(np.where(is_top, 0, self.often), self.starts)
        is_shared = np.add.reduceat(is_top.astype(np.int64), self.starts) > 1
        other = np.where(is_shared, highest, below)
        return np.where(is_top, other[self.group], highest[self.group])


class NGramSample:
    """One draw of the texts: what several figures count of it is counted once."""

    def __init__(self, grams: NGramTable, drawn: Sequence[int]) -> None:
        """Draw.

        Args:
            grams: Of all texts.
            drawn: Places of those drawn, in order.
        """
        self.drawn = drawn
        self._grams = grams
        self._filled = [at for at in drawn if grams.lengths[at]]
        self._known: dict[int, NGramCounts] = {}

    @property
    def lengths(self) -> Ints:
        """Words of each drawn text that has any, (M,)."""
        return self._grams.lengths[self._filled]

    def words(self) -> Ints:
        """Return the numbers of the words of all drawn texts."""
        return self._grams.of(self.drawn, 1)[0]

    def counts(self, n: int) -> NGramCounts:
        """Return how often each drawn text that has any words holds each of its n-grams."""
        if n not in self._known:
            self._known[n] = _count_ngrams(*self._grams.of(self._filled, n))
        return self._known[n]


def _count_ngrams(grams: Ints, owners: Ints) -> NGramCounts:
    """Count n-grams whose owners stand in order."""
    order = np.argsort(grams, kind="stable")  # so that the owners of each stay in order
    grams, owners = grams[order], owners[order]
    is_new = np.ones(len(grams), dtype=bool)
    is_new[1:] = grams[1:] != grams[:-1]
    is_first = is_new.copy()
    is_first[1:] |= owners[1:] != owners[:-1]
    first = np.flatnonzero(is_first)
    is_new = is_new[first]
    return NGramCounts(
        owners[first],
        np.diff(first, append=len(grams)),
        np.cumsum(is_new) - 1,
        np.flatnonzero(is_new),
    )


_BEGIN, _END = "\ue000", "\ue001"


"""Marks around a text, of the private use area."""


_ALPHABET_SIZE = 0x110000


class CharacterNGramModel:
    """Which character comes next, by those before it, as some texts have it."""

    def __init__(self, texts: Iterable[str], *, order: int = 5) -> None:
        """Read the texts.

        Args:
            texts: What is learned.
            order: Characters of an n-gram.
        """
        self._order = order
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            marked = self._mark(text)
            for at in range(order - 1, len(marked)):
                character = marked[at]
                for length in range(order):
                    counts[marked[at - length : at]][character] += 1
        self._counts = dict(counts)
        self._totals = {context: held.total() for context, held in counts.items()}

    def bits(self, text: str) -> float:
        """Return the bits that a text and its end cost."""
        marked, first = self._mark(text), self._order - 1
        return -math.fsum(
            math.log2(self._chance(marked[at - first : at], marked[at]))
            for at in range(first, len(marked))
        )

    def _chance(self, before: str, character: str) -> float:
        chance = 1 / _ALPHABET_SIZE
        for start in range(len(before), -1, -1):
            held = self._counts.get(before[start:])
            if held is None:  # what was never seen has no longer forms that were
                break
            kinds = len(held)
            total = self._totals[before[start:]]
            chance = (held[character] + kinds * chance) / (total + kinds)
        return chance

    def _mark(self, text: str) -> str:
        return _BEGIN * (self._order - 1) + text + _END
