"""The word n-grams of many texts as numbers, numbered once and counted for many draws of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["NGramSample", "NGrams"]

Ints = npt.NDArray[np.int64]


class NGrams:
    """All n-grams of some texts up to an order; equal n-grams have one number."""

    def __init__(self, texts: Sequence[Sequence[str]], order: int) -> None:
        """Number the n-grams of texts that are cut into words.

        Args:
            texts: The texts.
            order: The longest n-gram.
        """
        numbers: dict[str, int] = {}
        lexical = [numbers.setdefault(word, len(numbers)) for text in texts for word in text]
        self.lengths: Ints = np.array([len(text) for text in texts], dtype=np.int64)
        ends = np.cumsum(self.lengths)
        left = np.repeat(ends, self.lengths) - np.arange(len(lexical))  # words to the text's end
        flat = np.array(lexical, dtype=np.int64)
        self._grams: list[Ints] = []
        self._bounds: list[Ints] = []
        at, grams = np.arange(len(flat)), flat
        for n in range(1, order + 1):
            if n > 1:
                goes_on = left[at] >= n
                at, grams = at[goes_on], grams[goes_on]
                pairs = grams * len(numbers) + flat[at + n - 1]
                grams = np.unique(pairs, return_inverse=True)[1].reshape(-1)
            counts = np.maximum(self.lengths - n + 1, 0)
            self._grams.append(grams.astype(np.int64))
            self._bounds.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def of(self, drawn: Sequence[int], n: int) -> tuple[Ints, Ints]:
        """Return the n-grams of some texts, and of which text of the draw each is (K,), (K,)."""
        grams, bounds = self._grams[n - 1], self._bounds[n - 1]
        if not len(drawn):
            return grams[:0], grams[:0]
        found = np.concatenate([grams[bounds[one] : bounds[one + 1]] for one in drawn])
        sizes = bounds[np.array(drawn) + 1] - bounds[np.array(drawn)]
        return found, np.repeat(np.arange(len(drawn)), sizes)


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
        self._known: dict[int, tuple[Ints, Ints, Ints]] = {}

    @property
    def lengths(self) -> Ints:
        """Words of each drawn text that has any, (M,)."""
        return self._grams.lengths[self._filled]

    def counts(self, n: int) -> tuple[Ints, Ints, Ints]:
        """Return each different n-gram of each text once: n-gram, owner, how often, (K,) each.

        An owner is a place among the drawn texts that have any words.
        """
        if n not in self._known:
            grams, owners = self._grams.of(self._filled, n)
            width = int(grams.max()) + 1 if len(grams) else 1
            keys, often = np.unique(owners * width + grams, return_counts=True)
            self._known[n] = keys % width, keys // width, often
        return self._known[n]
