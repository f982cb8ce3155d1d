"""Support: whether a passage says what a sentence says, measured by the words they share.

The score of a sentence against a passage is the share of the sentence's terms, weighted by their
idf in the index, that stand within some window of consecutive sentences of the passage. Words that
only the passage's title and headings have count, too, but never for more than the window's own: a
receipt need not say in each line that it is one. Three
things turn a statement around while every other word stays, and make the score 0: a number that the
window does not have, a name that the passage does not have, and a negation on one side only (each
clause is held against the clause in the window that has most of its words). Names are words with a
capital letter within a sentence; where the passage writes many words so, as German does, they are
not told from others, and a name that a large index has everywhere may be missing. The threshold is
fixed; what falls below is unsupported.

Does not know: synonyms, arithmetic, what follows from what. A paraphrase in other words counts as
unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.text.sentences import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.analyzer import Analyzer
    from stillroom.rag.engines.keyword_engine import KeywordEngine

__all__ = ["SUPPORT_THRESHOLD", "Evidence", "Support", "is_negated", "names_of", "numbers_of"]

SUPPORT_THRESHOLD = 0.6
_WINDOW = 3
_NAME = re.compile(r"(?<![\w'’.-])[A-Z][\w-]*[\w]")
_BREAK = re.compile(
    r"[,;:()–—]|\b(?:and|but|since|because|while|although|though|whereas|unless)\b", re.IGNORECASE
)
_WORD = re.compile(r"\w+")
_QUOTES = " \t\n\"'“”‘’(*-•"
_MOST_NAMES = 0.25
_FEWEST_WORDS = 8
_COMMON = 1.5  # idf of a word in a quarter of the passages
_LARGE = 4.0  # idf of an unseen word among thirty passages
_UNSEEN = "\0"
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_BULLET = re.compile(r"\A\s*(?:\d{1,2}[.)]|[-*•])(?:\s+|$)")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|cannot|without)\b|n['’]t\b", re.IGNORECASE
)


_Clause = tuple[frozenset[str], bool]
"""The terms of a clause, and whether it is negated."""


@dataclass(frozen=True, slots=True)
class _Window:
    terms: frozenset[str]
    numbers: frozenset[str]
    clauses: tuple[_Clause, ...]

    @property
    def is_negated(self) -> bool:
        return any(negated for _, negated in self.clauses)

    def agrees(self, clauses: Sequence[_Clause], weights: Mapping[str, float]) -> bool:
        """Return whether each clause is negated as the clause here is that has most of its words.

        Of two that have as many, one that is negated likewise will do.
        """
        for terms, negated in clauses:
            own = {term: weights[term] for term in sorted(terms) if term in weights}
            same, other = (
                max((_weigh(own, held) for held, sign in self.clauses if sign == wanted), default=0)
                for wanted in (negated, not negated)
            )
            if other > same:
                return False
        return True


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

    def __init__(self, passages: Sequence[str], analyzer: Analyzer, lexicon: KeywordEngine) -> None:
        """Take the passages' texts in the order of their numbers."""
        self._analyzer, self._lexicon = analyzer, lexicon
        self._passages = [self._windows(text) for text in passages]
        self._words = [None if _has_many_names(text) else self._all(text) for text in passages]
        self._places = [frozenset[str]() for _ in passages]

    def place(self, places: Sequence[str]) -> None:
        """Say what each passage stands under: title and headings, in the order of numbers."""
        self._places = [self._all(place) for place in places]
        self._words = [
            None if words is None else words | place
            for words, place in zip(self._words, self._places, strict=True)
        ]

    def measure(self, sentence: str, number: int) -> float:
        """Return the support of a sentence by the passage of that number, from 0 to 1."""
        sentence = _BULLET.sub("", sentence)
        weights = {term: self._lexicon.idf(term) for term in sorted(self._terms(sentence))}
        total = sum(weights.values())
        if not total or not self._has_names(sentence, number):
            return 0.0
        numbers, clauses = numbers_of(sentence), self._clauses(sentence)
        best, place = 0.0, self._places[number - 1]
        for window in self._passages[number - 1]:
            if numbers <= window.numbers and window.agrees(clauses, weights):
                own = _weigh(weights, window.terms)
                under = _weigh(weights, window.terms | place)
                best = max(best, min(under, 2 * own) / total)
        return best

    def measure_together(self, sentence: str, numbers: Sequence[int]) -> float:
        """Return the support of a sentence by several passages read together, from 0 to 1.

        Each passage gives its best window; what one of them lacks another may have. A checker of
        another kind reads them one by one.
        """
        alone = [self.measure(sentence, number) for number in numbers]
        sentence = _BULLET.sub("", sentence)
        weights = {term: self._lexicon.idf(term) for term in sorted(self._terms(sentence))}
        total = sum(weights.values())
        if len(numbers) < 2 or not total or type(self).measure is not Evidence.measure:
            return max(alone, default=0.0)
        best = [
            max(
                self._passages[number - 1],
                key=lambda window: sum(weights.get(term, 0.0) for term in window.terms),
                default=_Window(frozenset(), frozenset(), ()),
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
            parts = [text[start:end] for start, end in spans[first : first + width]]
            clauses = tuple(clause for one in parts for clause in self._clauses(one))
            windows.append(_Window(self._terms(part), numbers_of(part), clauses))
        return windows

    def _clauses(self, sentence: str) -> list[_Clause]:
        parts = [part for part in _BREAK.split(sentence) if part.strip()]
        return [(self._terms(part), is_negated(part)) for part in parts]

    def _has_names(self, sentence: str, number: int) -> bool:
        """Return whether the passage has every name of a sentence, in any of its forms."""
        words = self._words[number - 1]
        if words is None:
            return True
        return all(
            self._all(name) & words or self._is_everywhere(name) for name in names_of(sentence)
        )

    def _is_everywhere(self, name: str) -> bool:
        """Return whether a name is common in a large index: of what all of it is about."""
        idf = self._lexicon.idf
        common = min(map(idf, sorted(self._all(name))), default=0.0) < _COMMON
        return common and idf(_UNSEEN) > _LARGE

    def _all(self, text: str) -> frozenset[str]:
        return frozenset(self._analyzer.terms(text))


def names_of(text: str) -> list[str]:
    """Return the words with a capital letter that do not begin a sentence."""
    starts = [start for start, _ in split_sentences(text)]
    names = []
    for found in _NAME.finditer(text):
        start = max((one for one in starts if one <= found.start()), default=0)
        if text[start : found.start()].strip(_QUOTES):
            names.append(found.group())
    return names


def _has_many_names(text: str) -> bool:
    words = len(_WORD.findall(text))
    return words < _FEWEST_WORDS or len(names_of(text)) > _MOST_NAMES * words


def _weigh(weights: Mapping[str, float], terms: frozenset[str]) -> float:
    return sum(weight for term, weight in weights.items() if term in terms)


def numbers_of(text: str) -> frozenset[str]:
    """Return the numbers of a text, written without the commas between thousands."""
    return frozenset(number.replace(",", "") for number in _NUMBER.findall(text))


def is_negated(text: str) -> bool:
    """Return whether a text holds a negation."""
    return bool(_NEGATION.search(text))
