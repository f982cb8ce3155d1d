"""Test items told in other words: close in meaning, and about the same names and numbers.

What decides is cosine + 0.2 * the share of the item's names and numbers that the text has too, each
by its information. Cosine alone cannot tell a question reworded from another one of its kind: on
grade-school problems reworded by hand it finds half at the false alarms with which the sum finds
five sixths (docs/explanation/lab-notebook.md). Numbers in English words count as their digits.

Source: Yang et al. 2023, arXiv:2311.04850 (rephrased samples, found by embeddings and a judge).
Differs: names and numbers stand beside the cosine; a judge is asked only about what lies between.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Likeness", "RewordingIndex", "find_anchors"]

Vectors = npt.NDArray[np.float32]

_ANCHOR_WEIGHT = 0.2
_LOOKED_AT = 5
_COMMON = 0.01
"""A capitalized word that more of the texts hold is no name."""
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = (
    {word: str(number) for number, word in enumerate(_UNITS.split())}
    | {word: str(10 * number) for number, word in enumerate(_TENS.split(), 3)}
    | {"dozen": "12", "hundred": "100", "thousand": "1000"}
)
_SAY_NOTHING = frozenset({"0", "1", "2"})
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_STARTS = re.compile(r"(?:^|[.!?:]\s+)(\w+)")


@dataclass(frozen=True, slots=True)
class Likeness:
    """How like a text is to an item: cosine, and the share of names and numbers they share."""

    item: int
    cosine: float
    anchors: float

    @property
    def score(self) -> float:
        """What thresholds are compared with."""
        return self.cosine + _ANCHOR_WEIGHT * self.anchors


def find_anchors(
    text: str, frequency: Mapping[str, int] | None = None, texts: int = 0
) -> frozenset[str]:
    """Return the names and numbers of a text, lower case.

    Args:
        text: Any text.
        frequency: In how many of ``texts`` texts each word is, lower case.
        texts: How many were counted; a word that begins a sentence is a name only where it is rare
            in them.
    """
    known = frequency or {}
    begins = set(_STARTS.findall(text))
    found = set()
    for token in _TOKEN.findall(text):
        low = token.lower()
        if token[0].isdigit():
            found.add(token.replace(",", "").removesuffix(".00").removesuffix(".0"))
        elif low in _NUMBERS:
            found.add(_NUMBERS[low])
        elif token[0].isupper() and (token not in begins or known.get(low, 0) < _COMMON * texts):
            found.add(low)
    return frozenset(found - _SAY_NOTHING)


class RewordingIndex:
    """Items with their vectors, to be compared with many texts."""

    def __init__(
        self,
        items: Sequence[str],
        vectors: Vectors,
        *,
        frequency: Mapping[str, int] | None = None,
        texts: int = 0,
    ) -> None:
        """Index the items.

        Args:
            items: What must not be found.
            vectors: One for each, (N, D), L2-normalized.
            frequency: In how many of ``texts`` texts each word is, lower case.
            texts: How many texts were counted.
        """
        self._vectors = vectors
        self._frequency, self._texts = frequency or {}, texts
        self._anchors = [find_anchors(item, self._frequency, texts) for item in items]

    def find(self, text: str, vector: npt.NDArray[np.float32]) -> Likeness | None:
        """Return the item that a text is most like; None where there are no items."""
        cosines = self._vectors @ vector
        order = np.argsort(-cosines, kind="stable")[:_LOOKED_AT]
        here = find_anchors(text, self._frequency, self._texts)
        found = [Likeness(int(at), float(cosines[at]), self._share(int(at), here)) for at in order]
        return max(found, key=lambda one: (one.score, -one.item), default=None)

    def _share(self, item: int, here: frozenset[str]) -> float:
        weights = {
            anchor: math.log((self._texts + 2) / (1 + self._frequency.get(anchor, 0)))
            for anchor in self._anchors[item]
        }
        total = sum(weights.values())
        return (
            sum(weights[anchor] for anchor in weights if anchor in here) / total if total else 0.0
        )
