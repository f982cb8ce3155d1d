"""Support: whether a passage says what a sentence says, measured by the words they share.

The score of a sentence against a passage is the share of the sentence's terms, weighted by their
idf in the index, that stand within some window of consecutive sentences of the passage. A number
or a negation that the window does not have makes it 0: those turn a statement around while every
other word stays. The threshold is fixed; what falls below is unsupported.

Does not know: synonyms, arithmetic, what follows from what. A paraphrase in other words counts as
unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.text.sentences import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.analyzer import Analyzer
    from stillroom.rag.lexicon import Lexicon

__all__ = ["SUPPORT_THRESHOLD", "Evidence", "Support", "is_negated", "numbers_of"]

SUPPORT_THRESHOLD = 0.6
_WINDOW = 3
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_BULLET = re.compile(r"\A\s*(?:\d{1,2}[.)]|[-*•])(?:\s+|$)")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|cannot|without)\b|n['’]t\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Window:
    terms: frozenset[str]
    numbers: frozenset[str]
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Support:
    """How well the best passage supports a sentence; ``number`` 0 means that none does."""

    number: int
    score: float


class Evidence:
    """The passages that were shown, ready to be held against sentences.

    Checkers of another kind override ``measure`` and ``threshold``.
    """

    threshold = SUPPORT_THRESHOLD
    """The score from which a sentence is supported."""

    def __init__(self, passages: Sequence[str], analyzer: Analyzer, lexicon: Lexicon) -> None:
        """Take the passages' texts in the order of their numbers."""
        self._analyzer, self._lexicon = analyzer, lexicon
        self._passages = [self._windows(text) for text in passages]

    def measure(self, sentence: str, number: int) -> float:
        """Return the support of a sentence by the passage of that number, from 0 to 1."""
        sentence = _BULLET.sub("", sentence)
        terms = self._terms(sentence)
        numbers, negated = numbers_of(sentence), is_negated(sentence)
        weights = {term: self._lexicon.idf(term) for term in sorted(terms)}
        total = sum(weights.values())
        if not total:
            return 0.0
        best = 0.0
        for window in self._passages[number - 1]:
            if numbers <= window.numbers and negated <= window.is_negated:
                held = sum(weight for term, weight in weights.items() if term in window.terms)
                best = max(best, held / total)
        return best

    def measure_together(self, sentence: str, numbers: Sequence[int]) -> float:
        """Return the support of a sentence by several passages read together, from 0 to 1.

        Each passage gives its best window; what one of them lacks another may have.
        """
        alone = [self.measure(sentence, number) for number in numbers]
        sentence = _BULLET.sub("", sentence)
        weights = {term: self._lexicon.idf(term) for term in sorted(self._terms(sentence))}
        total = sum(weights.values())
        if len(numbers) < 2 or not total:
            return max(alone, default=0.0)
        best = [
            max(
                self._passages[number - 1],
                key=lambda window: sum(weights.get(term, 0.0) for term in window.terms),
                default=_Window(frozenset(), frozenset(), False),
            )
            for number in numbers
        ]
        terms = frozenset[str]().union(*(window.terms for window in best))
        known = frozenset[str]().union(*(window.numbers for window in best))
        negated = any(window.is_negated for window in best)
        if not (numbers_of(sentence) <= known and is_negated(sentence) <= negated):
            return max(alone)
        held = sum(weight for term, weight in weights.items() if term in terms)
        return max(*alone, held / total)

    def find(self, sentence: str) -> Support:
        """Return the best support of a sentence; equal scores go to the lower number."""
        best = Support(0, 0.0)
        for number in range(1, len(self._passages) + 1):
            score = self.measure(sentence, number)
            if score > best.score:
                best = Support(number, score)
        return best

    def has_claim(self, sentence: str) -> bool:
        """Return whether a sentence holds any word that can be looked for."""
        return bool(self._terms(_BULLET.sub("", sentence)))

    def _terms(self, text: str) -> frozenset[str]:
        stop = self._analyzer.stop_words
        return frozenset(term for term in self._analyzer.terms(text) if term not in stop)

    def _windows(self, text: str) -> list[_Window]:
        spans = split_sentences(text) or [(0, len(text))]
        width = min(_WINDOW, len(spans))
        windows = []
        for first in range(len(spans) - width + 1):
            part = text[spans[first][0] : spans[first + width - 1][1]]
            windows.append(_Window(self._terms(part), numbers_of(part), is_negated(part)))
        return windows


def numbers_of(text: str) -> frozenset[str]:
    """Return the numbers of a text, written without the commas between thousands."""
    return frozenset(number.replace(",", "") for number in _NUMBER.findall(text))


def is_negated(text: str) -> bool:
    """Return whether a text holds a negation."""
    return bool(_NEGATION.search(text))
