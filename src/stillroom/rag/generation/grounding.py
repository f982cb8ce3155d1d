"""Groundedness: whether a passage supports a sentence, by shared words.

The score of a sentence against a passage is the share of the sentence's terms, weighted by their
idf in the index, that stand within some window of consecutive sentences of the passage. Where the
question is known, what the sentence adds to it must stand there, too. Words that only the passage's
title and headings have count, too, but never for more than the window's own: a receipt need not say
in each line that it is one.

Four things turn a statement around while other words stay, and make the score 0: a number that the
window does not have, a name that the passage does not have, a negation on one side only (each
clause is held against the clause in the window that has most of its words), and a word, name or
number that stands where the passage has another (see ``stillroom.rag.generation.substitutions``).
Names are words with a capital letter within a sentence; in German, which writes nouns so, they are
not told from others, and a name that a large index has everywhere may be missing. English words for
numbers up to twelve are read as digits. A sentence of none but words that were asked says something
where it is negated and the question is not, or where it has a letter or word that the question
lacks, such as the A of "vitamin A" or ``under``; the passage must have that, too. The threshold is
fixed; what falls below is unsupported.

Does not know: synonyms, arithmetic, what follows from what, which of two names that stand together
a statement belongs to. A paraphrase in other words counts as unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from stillroom.rag.analysis.analyzer import STOP_WORDS
from stillroom.rag.generation.substitutions import (
    NUMBER_WORDS,
    TokenizedSentences,
    find_substitution,
)
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.analysis.analyzer import Analyzer
    from stillroom.rag.search_engines.keyword import KeywordEngine

__all__ = [
    "SUPPORT_THRESHOLD",
    "GroundednessScore",
    "SourceTexts",
    "extract_names",
    "extract_numbers",
    "is_negated",
]

SUPPORT_THRESHOLD = 0.6
_WINDOW = 3
_NAME = re.compile(r"(?<![\w'’.-])[^\W\d_][\w-]*\w")
_CLAUSE_BREAK = re.compile(
    r"[,;:()–—]|\b(?:and|but|since|because|while|although|though|whereas|unless)\b", re.IGNORECASE
)
_WORD = re.compile(r"\w+")
_QUOTES = " \t\n\"'“”‘’(*-•"
_MAX_NAME_SHARE = 0.15
_COMMON_IDF = 1.5  # idf of a word in a quarter of the passages
_RARE_IDF = 4.0  # idf of an unseen word among thirty passages
_UNSEEN_TERM = "\0"
_QUESTION_WORDS = frozenset(
    "who whom whose what which when where why how"  # noqa: SIM905
    " wer wen wem wessen welche welcher welches wann wo warum wie wieviel"
    " qui quel quelle quels quelles quand où pourquoi comment combien"
    " quién quiénes qué cuál cuáles cuándo dónde cómo cuánto cuántos"
    " chi quale quali quando dove perché quanto quanti"
    " quem qual quais onde quantos".split()
)
_CHOICE_WORDS = frozenset({"or", "oder", "ou", "o"})
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_BEFORE_SENTENCE = frozenset({"", ".", "!", "?"})  # "vitamin B. A carrot" passes for one sentence
_CAPITALS = re.compile(r"(?<![\w'’.-])[A-Z]+(?![\w'’-])")
_CONTENT_PREPOSITIONS = frozenset(
    "up down off over under above below before after during between against all both few".split()  # noqa: SIM905
)
"""Stop words that may be the whole of an answer."""
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
                max(
                    (_weigh_words(own, held) for held, sign in self.clauses if sign == wanted),
                    default=0,
                )
                for wanted in (negated, not negated)
            )
            if other > same:
                return False
        return True


@dataclass(frozen=True, slots=True)
class GroundednessScore:
    """How well the best passage supports a sentence; ``number`` 0 means that none does."""

    number: int
    score: float


class SourceTexts:
    """The passages that were shown, ready to be held against sentences.

    Checkers of another kind override ``measure`` and ``threshold``.
    """

    threshold = SUPPORT_THRESHOLD
    """The score from which a sentence is supported."""

    def __init__(self, passages: Sequence[str], analyzer: Analyzer, lexicon: KeywordEngine) -> None:
        """Take the passages' texts in the order of their numbers."""
        self._analyzer, self._lexicon = analyzer, lexicon
        self._passages = [self._windows(text) for text in passages]
        self._words = [self._all(text) for text in passages]
        self._places = [frozenset[str]() for _ in passages]
        self._has_names = [not _capitalizes_nouns(text) for text in passages]
        self._stem = lru_cache(maxsize=4096)(self._stem_of)
        self._texts = list(passages)
        self._readings: dict[int, TokenizedSentences] = {}
        self._asked = self._question = self._asked_small = frozenset[str]()
        self._asks_negated = False

    def place(self, places: Sequence[str]) -> None:
        """Say what each passage stands under: title and headings, in the order of numbers."""
        self._places = [self._all(place) for place in places]
        self._words = [
            words | place for words, place in zip(self._words, self._places, strict=True)
        ]

    def ask(self, question: str) -> None:
        """Say what was asked: a sentence is judged by what it adds to it, as well.

        A question that can be answered in its own words (yes or no, one or the other) is not held
        against a sentence.
        """
        self._asked = self._all(question)
        self._question = self._asked if _is_open_question(question) else frozenset()
        self._asked_small, self._asks_negated = self._small(question), is_negated(question)

    def measure(self, sentence: str, number: int) -> float:
        """Return the support of a sentence by the passage of that number, from 0 to 1."""
        sentence = _BULLET.sub("", sentence)
        weights = self._weigh_terms(sentence)
        if not sum(weights.values()) or not self._has_its_names(sentence, number):
            return 0.0
        if not self._has_small(sentence, number):
            return 0.0
        numbers, clauses = extract_numbers(sentence), self._clauses(sentence)
        best = 0.0
        for window in self._passages[number - 1]:
            if numbers <= window.numbers and window.agrees(clauses, weights):
                best = max(best, self._cover(weights, window, number))
        if best >= SUPPORT_THRESHOLD and self._is_replaced(sentence, number):
            return 0.0
        return best

    def _cover(self, weights: Mapping[str, float], window: _Window, number: int) -> float:
        """Return the share of the terms' weight in a window, and in it of what is new in them."""
        under = window.terms | self._places[number - 1]
        own, held = _weigh_words(weights, window.terms), _weigh_words(weights, under)
        share = min(held, 2 * own) / sum(weights.values())
        fresh = {term: one for term, one in weights.items() if term not in self._question}
        if self._question and fresh:
            share = min(share, _weigh_words(fresh, under) / sum(fresh.values()))
        return share

    def _has_small(self, sentence: str, number: int) -> bool:
        """Return whether the passage has the small words that alone answer, where they do."""
        if not self._question or self._terms(sentence) - self._question:
            return True
        return self._small(sentence) - self._asked_small <= self._small(self._texts[number - 1])

    def _small(self, text: str) -> frozenset[str]:
        """Return the stop words of a text that may tell something: capitals, and a few words."""
        found = {
            word for word in map(str.casefold, _WORD.findall(text)) if word in _CONTENT_PREPOSITIONS
        }
        if text.upper() != text:
            found.update(
                one.group()
                for start, end in split_sentences(text)
                for one in _CAPITALS.finditer(text, start, end)
                if one.group() != "I"
                and text[start : one.start()].rstrip(_QUOTES)[-1:] not in _BEFORE_SENTENCE
                and not self._stem(one.group())
            )
        return frozenset(found)

    def _is_replaced(self, sentence: str, number: int) -> bool:
        """Return whether a sentence says something else where the passage has its own word."""
        has_names = self._has_names[number - 1]
        if number not in self._readings:
            text = self._texts[number - 1]
            self._readings[number] = TokenizedSentences(text, self._stem, has_names=has_names)
        claim = TokenizedSentences(sentence, self._stem, has_names=has_names)
        return find_substitution(claim, self._readings[number]) is not None

    def measure_together(self, sentence: str, numbers: Sequence[int]) -> float:
        """Return the support of a sentence by several passages read together, from 0 to 1.

        Each passage gives its best window; what one of them lacks another may have. A checker of
        another kind reads them one by one.
        """
        alone = [self.measure(sentence, number) for number in numbers]
        sentence = _BULLET.sub("", sentence)
        weights = self._weigh_terms(sentence)
        total = sum(weights.values())
        if len(numbers) < 2 or not total or type(self).measure is not SourceTexts.measure:
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
        if not (extract_numbers(sentence) <= known and is_negated(sentence) <= negated):
            return max(alone)
        if any(self._is_replaced(sentence, number) for number in numbers):
            return max(alone)
        return max(*alone, _weigh_words(weights, terms) / total)

    def find(self, sentence: str) -> GroundednessScore:
        """Return the best support of a sentence; equal scores go to the lower number."""
        best = GroundednessScore(0, 0.0)
        for number in range(1, len(self._passages) + 1):
            score = self.measure(sentence, number)
            if score > best.score:
                best = GroundednessScore(number, score)
        return best

    def has_claim(self, sentence: str) -> bool:
        """Return whether a sentence says anything that can be looked for and was not asked."""
        sentence = _BULLET.sub("", sentence)
        terms = self._terms(sentence)
        return bool(terms - self._question or (terms and self._tells_more(sentence)))

    def is_restated(self, sentence: str) -> bool:
        """Return whether a sentence has words that can be looked for, and says what was asked."""
        sentence = _BULLET.sub("", sentence)
        terms = self._terms(sentence)
        return bool(terms) and terms <= self._asked and not self._tells_more(sentence)

    def _tells_more(self, sentence: str) -> bool:
        """Return whether a sentence of the question's words turns it around or adds to it."""
        if is_negated(sentence) != self._asks_negated:
            return True
        return not self._small(sentence) <= self._asked_small

    def _weigh_terms(self, sentence: str) -> dict[str, float]:
        return {term: self._lexicon.idf(term) for term in sorted(self._terms(sentence))}

    def _terms(self, text: str) -> frozenset[str]:
        stop = self._analyzer.stop_words
        terms = (term for term in self._analyzer.terms(text) if term not in stop)
        return frozenset(NUMBER_WORDS.get(term, term) for term in terms)

    def _windows(self, text: str) -> list[_Window]:
        spans = split_sentences(text) or [(0, len(text))]
        width = min(_WINDOW, len(spans))
        windows = []
        for first in range(len(spans) - width + 1):
            part = text[spans[first][0] : spans[first + width - 1][1]]
            parts = [text[start:end] for start, end in spans[first : first + width]]
            clauses = tuple(clause for one in parts for clause in self._clauses(one))
            windows.append(_Window(self._terms(part), _extract_all_numbers(part), clauses))
        return windows

    def _clauses(self, sentence: str) -> list[_Clause]:
        parts = [part for part in _CLAUSE_BREAK.split(sentence) if part.strip()]
        return [(self._terms(part), is_negated(part)) for part in parts]

    def _has_its_names(self, sentence: str, number: int) -> bool:
        """Return whether the passage has every name of a sentence, in any of its forms."""
        if not self._has_names[number - 1]:
            return True
        words = self._words[number - 1]
        return all(
            self._all(name) & words or self._is_everywhere(name) for name in extract_names(sentence)
        )

    def _is_everywhere(self, name: str) -> bool:
        """Return whether a name is common in a large index: of what all of it is about."""
        idf = self._lexicon.idf
        common = min(map(idf, sorted(self._all(name))), default=0.0) < _COMMON_IDF
        return common and idf(_UNSEEN_TERM) > _RARE_IDF

    def _all(self, text: str) -> frozenset[str]:
        return frozenset(NUMBER_WORDS.get(term, term) for term in self._analyzer.terms(text))

    def _stem_of(self, word: str) -> str:
        """Return the term of a word; nothing for a stop word."""
        terms = self._analyzer.terms(word)
        return "" if not terms or terms[0] in self._analyzer.stop_words else terms[0]


def extract_names(text: str) -> list[str]:
    """Return the words with a capital letter that do not begin a sentence."""
    starts = [start for start, _ in split_sentences(text)]
    names = []
    for found in _NAME.finditer(text):
        if not found.group()[0].isupper():
            continue
        start = max((one for one in starts if one <= found.start()), default=0)
        if text[start : found.start()].strip(_QUOTES):
            names.append(found.group())
    return names


def _capitalizes_nouns(text: str) -> bool:
    """Return whether a text writes every noun with a capital letter, as German does."""
    words = [word.casefold() for word in _WORD.findall(text)]
    german, english = (
        sum(word in STOP_WORDS[language] for word in words) for language in ("german", "english")
    )
    return german > english and len(extract_names(text)) > _MAX_NAME_SHARE * len(words)


def _is_open_question(question: str) -> bool:
    """Return whether a question asks for something that is not in it."""
    words = set(_WORD.findall(question.casefold()))
    return bool(words & _QUESTION_WORDS) and not words & _CHOICE_WORDS


def _extract_all_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, those that are written in words as digits, too."""
    words = (word.casefold() for word in _WORD.findall(text))
    return extract_numbers(text) | {
        "1" if word == "one" else NUMBER_WORDS[word]
        for word in words
        if word == "one" or word in NUMBER_WORDS
    }


def _weigh_words(weights: Mapping[str, float], terms: frozenset[str]) -> float:
    return sum(weight for term, weight in weights.items() if term in terms)


def extract_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, written without the commas between thousands."""
    return frozenset(number.replace(",", "") for number in _NUMBER.findall(text))


def is_negated(text: str) -> bool:
    """Return whether a text holds a negation."""
    return bool(_NEGATION.search(text))
