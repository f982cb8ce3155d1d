"""How hard a text is to foresee for who has read some others: character n-grams, no training.

Each order is interpolated with the one below by Witten and Bell's weight, which grows with how many
different characters have followed; below the lowest, all code points are alike. Small texts teach
it what a small model would learn of them in its first steps: spelling, common words, names.

Source: Witten and Bell 1991, doi:10.1109/18.87000 (their method C), interpolated as in Chen and
Goodman 1999, doi:10.1006/csla.1999.0128.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

__all__ = ["CharacterModel"]

_BEGIN, _END = "\ue000", "\ue001"
"""Marks around a text, of the private use area."""
_EVERY = 0x110000


class CharacterModel:
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
        chance = 1 / _EVERY
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
