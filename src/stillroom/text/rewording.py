"""Test items told in other words: close in meaning, and about the same names and numbers.

What decides is cosine + 0.2 * the share of the item's names and numbers that the text has too, each
by its information. Cosine alone cannot tell a question reworded from another one of its kind: on
grade-school problems reworded by hand it finds half at the false alarms with which the sum finds
five sixths (docs/explanation/lab-notebook.md). Numbers in English words count as their digits.

A question told of other people and things, or in another language, keeps little but its numbers:
the same ones in the same order count by their information, and stand in for names where they say
more. An item that has neither names nor numbers is told apart by cosine, from a lower bound on.
That a text has the item's answer counts as well, where the caller knows it, and that it has
another one against it: two questions about one passage share its names, and not their answers.

Source: Yang et al. 2023, arXiv:2311.04850 (rephrased samples, found by embeddings and a judge).
Differs: names and numbers stand beside the cosine; a judge is asked only about what lies between.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.text.asking import asks, split_asked
from stillroom.text.sentences import split_sentences

__all__ = ["Likeness", "RewordingIndex", "find_anchors", "find_numbers"]

Vectors = npt.NDArray[np.float32]

_ANCHOR_WEIGHT = 0.2
_NO_ANCHORS = 0.3
"""The share of an item that has none: it says neither that a text is like it nor that it is not."""
_FULL = 2 / 3
"""Of what a word tells that no text has. All that an item has, if less, is no whole share."""
_ORDER_WEIGHT = 0.05
"""Of a nat of numbers in order; with the next three chosen on hand-made rewordings."""
_LEAST_ORDER, _MOST_ORDER = 5.0, 13.0
_ANSWER_WEIGHT = 0.11
"""Of an answer that both have; chosen on hand-made rewordings of other items."""
_DENIED_WEIGHT = 0.25
"""Of answers that have no word in common; chosen on pairs of questions about one passage."""
_ALIKE_ORDER = 0.7
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
_WORDS = {number: word for word, number in _NUMBERS.items() if word != "dozen"}
_SAY_NOTHING = frozenset({"0", "1", "2"})
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_STARTS = re.compile(r"(?:^|[.!?:]\s+)(\w+)")


@dataclass(frozen=True, slots=True)
class Likeness:
    """How like a text is to an item.

    ``cosine`` of their vectors; ``anchors`` the share of the item's names and numbers that the text
    has too, less where all of them are common; ``order`` the nats of the numbers that both have in
    the same order, 0 where these are fewer than seven tenths of all; ``is_answered`` whether the
    text's answer is the item's, ``is_denied`` whether both are told and have nothing in common.
    """

    item: int
    cosine: float
    anchors: float
    order: float = 0.0
    is_answered: bool = False
    is_denied: bool = False

    @property
    def score(self) -> float:
        """What thresholds are compared with."""
        anchors = max(_ANCHOR_WEIGHT * self.anchors, _ORDER_WEIGHT * self.order)
        answers = _ANSWER_WEIGHT * self.is_answered - _DENIED_WEIGHT * self.is_denied
        return self.cosine + anchors + answers


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
        low, number = token.lower(), _number_of(token)
        if number:
            found.add(number)
        elif token[0].isupper() and (token not in begins or known.get(low, 0) < _COMMON * texts):
            found.add(low)
    return frozenset(found - _SAY_NOTHING)


def find_numbers(text: str) -> list[str]:
    """Return the numbers of a text in order, as digits, those in English words too."""
    return [number for token in _TOKEN.findall(text) if (number := _number_of(token))]


def _is_question(item: str) -> bool:
    """Return whether an item is one question, by itself or apart from a passage."""
    part = split_asked(item)
    asked = part.question if part.is_apart else item
    return asks(asked) and len(split_sentences(asked)) == 1


def _number_of(token: str) -> str:
    if token[0].isdigit():
        return token.replace(",", "").removesuffix(".00").removesuffix(".0")
    return _NUMBERS.get(token.lower(), "")


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
        self._is_question = np.array([_is_question(item) for item in items], dtype=bool)
        self._anchors = [find_anchors(item, self._frequency, texts) for item in items]
        self._numbers = [find_numbers(item) for item in items]
        self._holders: dict[str, list[int]] = {}
        for at, numbers in enumerate(self._numbers):
            for number in set(numbers):
                self._holders.setdefault(number, []).append(at)

    def find(
        self,
        text: str,
        vector: npt.NDArray[np.float32],
        answered: Collection[int] = (),
        *,
        is_stated: bool = False,
        denied: Callable[[int], bool] = lambda item: False,
    ) -> Likeness | None:
        """Return the item that a text is most like; None where there are no items.

        Args:
            text: What is compared.
            vector: Its own.
            answered: The items whose answer is the text's, where that says something.
            denied: Whether an item's answer is told and unlike the text's.
            is_stated: The text asks nothing: a bare question is not compared with what answers it.
        """
        cosines = self._vectors @ vector
        if is_stated:
            cosines = np.where(self._is_question, -1.0, cosines)
        nearest = np.argsort(-cosines, kind="stable")[:_LOOKED_AT].tolist()
        here, numbers = find_anchors(text, self._frequency, self._texts), find_numbers(text)
        orders = {at: self._order(at, numbers) for at in self._sharing(numbers)}
        found = [
            Likeness(
                at,
                float(cosines[at]),
                self._share(at, here),
                orders.get(at, 0.0),
                at in answered,
                denied(at),
            )
            for at in {*nearest, *(at for at, order in orders.items() if order)}
        ]
        return max(found, key=lambda one: (one.score, -one.item), default=None)

    def _share(self, item: int, here: frozenset[str]) -> float:
        weights = {anchor: self._weigh(anchor) for anchor in self._anchors[item]}
        total = sum(weights.values())
        held = sum(weights[anchor] for anchor in weights if anchor in here)
        full = _FULL * math.log(self._texts + 2)
        return held / max(total, full) if total else _NO_ANCHORS

    def _weigh(self, word: str) -> float:
        """Return the information of a name or a number, in nats."""
        count = self._frequency.get(word, 0) + self._frequency.get(_WORDS.get(word, ""), 0)
        return max(0.0, math.log((self._texts + 2) / (1 + count)))

    def _sharing(self, numbers: Sequence[str]) -> list[int]:
        """Return the items that may have enough numbers in common with a text."""
        shared: dict[int, float] = {}
        for number in numbers:  # one that occurs twice may count twice
            for at in self._holders.get(number, ()):
                shared[at] = shared.get(at, 0.0) + self._weigh(number)
        return [at for at, nats in shared.items() if nats >= _LEAST_ORDER]

    def _order(self, item: int, numbers: Sequence[str]) -> float:
        """Return the nats of the longest run of numbers in common, gaps allowed, times its share.

        The share is of all numbers of both; 0 below the least of either.
        """
        own = self._numbers[item]
        row = [0.0] * (len(numbers) + 1)
        for number in own:
            above, row = row, [0.0]
            nats = self._weigh(number)
            for at, other in enumerate(numbers):
                same = above[at] + nats if other == number else 0.0
                row.append(max(above[at + 1], row[at], same))
        common = row[-1]
        total = sum(map(self._weigh, own)) + sum(map(self._weigh, numbers)) - common
        if common < _LEAST_ORDER or common < _ALIKE_ORDER * total:
            return 0.0
        return min(common, _MOST_ORDER) * common / total
