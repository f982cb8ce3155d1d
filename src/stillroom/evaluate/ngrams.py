"""The word n-grams of many texts as numbers, numbered once and counted for many draws of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Counts", "CutTexts", "Lexicon", "NGramSample", "NGrams"]

Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]

_MOST = 2**63 - 1


class Lexicon:
    """Words as numbers, in the order of their coming."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many different words there are."""
        return len(self._numbers)

    def number(self, words: Iterable[str]) -> Places:
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
class CutTexts:
    """Texts cut into words, which are numbers of one lexicon."""

    lexicon: Lexicon
    texts: Sequence[Places]

    @classmethod
    def of(cls, texts: Iterable[Iterable[str]]) -> CutTexts:
        """Number the words of texts."""
        lexicon = Lexicon()
        return cls(lexicon, [lexicon.number(words) for words in texts])

    def __getitem__(self, part: slice) -> CutTexts:
        """Return some of the texts."""
        return CutTexts(self.lexicon, self.texts[part])

    def count(self) -> int:
        """Return how many words all texts have together."""
        return sum(map(len, self.texts))

    def flat(self) -> Ints:
        """Return the words of all texts, one text after another."""
        if not self.texts:
            return np.zeros(0, dtype=np.int64)
        return np.concatenate(self.texts).astype(np.int64)


class NGrams:
    """All n-grams of some texts up to an order; equal n-grams have one number."""

    def __init__(self, cut: CutTexts, order: int) -> None:
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
                if below * size > _MOST:  # else the number says all of the words by itself
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
class Counts:
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

    def __init__(self, grams: NGrams, drawn: Sequence[int]) -> None:
        """Draw.

        Args:
            grams: Of all texts.
            drawn: Places of those drawn, in order.
        """
        self.drawn = drawn
        self._grams = grams
        self._filled = [at for at in drawn if grams.lengths[at]]
        self._known: dict[int, Counts] = {}

    @property
    def lengths(self) -> Ints:
        """Words of each drawn text that has any, (M,)."""
        return self._grams.lengths[self._filled]

    def words(self) -> Ints:
        """Return the numbers of the words of all drawn texts."""
        return self._grams.of(self.drawn, 1)[0]

    def counts(self, n: int) -> Counts:
        """Return how often each drawn text that has any words holds each of its n-grams."""
        if n not in self._known:
            self._known[n] = _count(*self._grams.of(self._filled, n))
        return self._known[n]


def _count(grams: Ints, owners: Ints) -> Counts:
    """Count n-grams whose owners stand in order."""
    order = np.argsort(grams, kind="stable")  # so that the owners of each stay in order
    grams, owners = grams[order], owners[order]
    is_new = np.ones(len(grams), dtype=bool)
    is_new[1:] = grams[1:] != grams[:-1]
    is_first = is_new.copy()
    is_first[1:] |= owners[1:] != owners[:-1]
    first = np.flatnonzero(is_first)
    is_new = is_new[first]
    return Counts(
        owners[first],
        np.diff(first, append=len(grams)),
        np.cumsum(is_new) - 1,
        np.flatnonzero(is_new),
    )
