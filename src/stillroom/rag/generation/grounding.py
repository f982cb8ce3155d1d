"""Groundedness score: how far a passage supports a sentence, by shared words (lexical overlap).

The score of a sentence against a passage is the share of the sentence's terms, weighted by their
idf in the index, that occur within a window of consecutive sentences of the passage. If the
question is known, the terms that the sentence adds to it must occur there, too. Terms found only in
the passage's title and headings count, too, but at most as much as those of the window: a receipt
does not repeat in each line that it is a receipt.

Six contradictions set the score to 0: a number missing in the window, a name missing in the
passage, a negation on one side only (each clause is compared with the clause of the passage that
shares most of its words), a substituted word, name or number (see
``stillroom.rag.generation.substitutions``), an exchange of a verb's subject and object, and "all"
for the passage's "some" (see ``stillroom.rag.generation.roles``). Names are capitalized words
within a sentence; in German, where all nouns are capitalized, they are not distinguished, and a
name that is frequent throughout a large index may be missing. English number words up to twelve are
read as digits. A sentence that has only words of the question still makes a claim if it is negated
and the question is not, or if it has a letter or word that the question lacks, such as the A of
"vitamin A" or ``under``; the passage must have that, too. ``citations`` marks lower scores than
``threshold`` as unsupported.

Not recognized: synonyms, arithmetic, inference, and to which of two adjacent names a statement
applies. A paraphrase in other words counts as unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from stillroom.rag.analysis.stop_words import STOP_WORDS
from stillroom.rag.generation.roles import (
    VerbRoles,
    find_roles,
    is_english,
    reverses_roles,
    widens_scope,
)
from stillroom.rag.generation.substitutions import (
    NUMBER_WORDS,
    TokenizedSentences,
    find_substitution,
    misplaces_number,
)
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.analysis.analyzer import Analyzer
    from stillroom.rag.search_engines.keyword import KeywordEngine

__all__ = [
    "BULLET",
    "SUPPORT_THRESHOLD",
    "GroundednessScore",
    "SourceTexts",
    "extract_all_numbers",
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
_REQUEST = re.compile(
    r"\s*(?:please\W+)?(?:(?:can|could|would) you\W+(?:please\W+)?)?"
    r"(?:name|list|give|tell|state|describe|explain|identify|mention)\b",
    re.IGNORECASE,
)
_CHOICE_WORDS = frozenset({"or", "oder", "ou", "o"})
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_BEFORE_SENTENCE = frozenset({"", ".", "!", "?"})  # "vitamin B. A carrot" is split as one sentence
_CAPITALS = re.compile(r"(?<![\w'’.-])[A-Z]+(?![\w'’-])")
_CONTENT_PREPOSITIONS = frozenset(
    "up down off over under above below before after during between against all both few".split()  # noqa: SIM905
)
"""Stop words that may be an entire answer."""
BULLET = re.compile(r"\A\s*(?:\d{1,2}[.)]|[-*•])(?:\s+|$)")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|cannot|without)\b|n['’]t\b", re.IGNORECASE
)
_Clause = tuple[frozenset[str], bool]
"""The terms of a clause, and whether it is negated."""


@dataclass(frozen=True, slots=True)
class _Window:
    terms: frozenset[str]
    numbers: frozenset[str]
    is_negated: bool


@dataclass(frozen=True, slots=True)
class GroundednessScore:
    """Support of a sentence by its best passage; ``number`` 0 means none."""

    number: int
    score: float


class SourceTexts:
    """The passages shown to the model, prepared for comparison with sentences.

    Other checkers override ``measure`` and ``threshold``.
    """

    threshold = SUPPORT_THRESHOLD
    """Minimum score of a supported sentence."""

    def __init__(self, passages: Sequence[str], analyzer: Analyzer, lexicon: KeywordEngine) -> None:
        """Prepare the passages' texts, given in the order of their numbers."""
        self._analyzer, self._lexicon = analyzer, lexicon
        self._passages = [self._windows(text) for text in passages]
        self._passage_clauses = [
            [
                clause
                for start, end in split_sentences(text)
                for clause in self._clauses(text[start:end])
            ]
            for text in passages
        ]
        self._words = [self._all_terms(text) for text in passages]
        self._neighbors: frozenset[tuple[str, str]] | None = None
        self._heading_terms = [frozenset[str]() for _ in passages]
        self._has_names = [not _capitalizes_nouns(text) for text in passages]
        self._stem = lru_cache(maxsize=4096)(self.stem)
        self._texts = list(passages)
        self._tokenized: dict[int, TokenizedSentences] = {}
        self._roles: dict[int, list[VerbRoles]] = {}
        self._question_terms = frozenset[str]()
        self._open_question_terms = frozenset[str]()
        self._question_stop_words = frozenset[str]()
        self._is_question_negated = False

    def set_headings(self, headings: Sequence[str]) -> None:
        """Set the title and headings of each passage, in the order of numbers."""
        self._heading_terms = [self._all_terms(heading) for heading in headings]
        self._words = [
            words | extra for words, extra in zip(self._words, self._heading_terms, strict=True)
        ]

    def set_question(self, question: str) -> None:
        """Set the question: sentences are also judged by what they add to it.

        A question that can be answered in its own words (yes or no, one or the other) is ignored.
        """
        self._question_terms = self._all_terms(question)
        self._open_question_terms = (
            self._question_terms if _is_open_question(question) else frozenset()
        )
        self._question_stop_words = self._informative_stop_words(question)
        self._is_question_negated = is_negated(question)

    def measure(self, sentence: str, number: int) -> float:
        """Return the support of a sentence by one passage, from 0 to 1."""
        sentence = BULLET.sub("", sentence)
        weights = self._weight_terms(sentence)
        if not sum(weights.values()) or not self._covers_names(sentence, number):
            return 0.0
        if not self._has_stop_words(sentence, number):
            return 0.0
        if not self._agrees(sentence, weights, number):
            return 0.0
        numbers, best = extract_numbers(sentence), 0.0
        for window in self._passages[number - 1]:
            if numbers <= window.numbers:
                best = max(best, self._cover(weights, window, number))
        if best >= SUPPORT_THRESHOLD and self._has_substitution(
            sentence, number, self._list_neighbors()
        ):
            return 0.0
        return best

    def _agrees(self, sentence: str, weights: Mapping[str, float], number: int) -> bool:
        """Return whether each clause has the same negation as the passage's most similar clause.

        Ties are resolved in favor of agreement.
        """
        for terms, negated in self._clauses(sentence):
            clause_weights = {term: weights[term] for term in sorted(terms) if term in weights}
            agreeing, opposite = (
                max(
                    (
                        _weigh_words(clause_weights, words)
                        for words, sign in self._passage_clauses[number - 1]
                        if sign == negation
                    ),
                    default=0,
                )
                for negation in (negated, not negated)
            )
            if opposite > agreeing:
                return False
        return True

    def _cover(self, weights: Mapping[str, float], window: _Window, number: int) -> float:
        """Return the covered share of the terms' weight, bounded by that of the new terms."""
        under = window.terms | self._heading_terms[number - 1]
        in_window, in_passage = _weigh_words(weights, window.terms), _weigh_words(weights, under)
        share = min(in_passage, 2 * in_window) / sum(weights.values())
        fresh = {
            term: weight
            for term, weight in weights.items()
            if term not in self._open_question_terms
        }
        if self._open_question_terms and fresh:
            share = min(share, _weigh_words(fresh, under) / sum(fresh.values()))
        return share

    def _has_stop_words(self, sentence: str, number: int) -> bool:
        """Return whether the passage has the stop words by which a sentence answers."""
        if not self._open_question_terms or self._terms(sentence) - self._open_question_terms:
            return True
        added = self._informative_stop_words(sentence) - self._question_stop_words
        return added <= self._informative_stop_words(self._texts[number - 1])

    def _informative_stop_words(self, text: str) -> frozenset[str]:
        """Return the informative stop words of a text: single capitals, and a few prepositions."""
        words = {
            word for word in map(str.casefold, _WORD.findall(text)) if word in _CONTENT_PREPOSITIONS
        }
        if text.upper() != text:
            words.update(
                match.group()
                for start, end in split_sentences(text)
                for match in _CAPITALS.finditer(text, start, end)
                if match.group() != "I"
                and text[start : match.start()].rstrip(_QUOTES)[-1:] not in _BEFORE_SENTENCE
                and not self._stem(match.group())
            )
        return frozenset(words)

    def _has_substitution(
        self, sentence: str, number: int, known: Collection[tuple[str, str]] = ()
    ) -> bool:
        """Return whether a sentence replaces a word of the passage by another.

        ``known`` are neighbors in all passages: what another one tells in the same words of
        another thing is no synonym of this one's.
        """
        has_names = self._has_names[number - 1]
        claim = TokenizedSentences(sentence, self._stem, has_names=has_names)
        source = self._tokenize(number)
        return (
            find_substitution(claim, source, known) is not None
            or misplaces_number(claim, source)
            or self._reverses_roles(sentence, number)
        )

    def _reverses_roles(self, sentence: str, number: int) -> bool:
        """Return whether a sentence exchanges participants, or says of all what holds for some."""
        if not is_english(self._texts[number - 1], least=0):
            return False
        if number not in self._roles:
            self._roles[number] = find_roles(self._texts[number - 1], self._stem)
        return reverses_roles(
            find_roles(sentence, self._stem), self._roles[number]
        ) or widens_scope(sentence, self._texts[number - 1], self._stem)

    def _tokenize(self, number: int) -> TokenizedSentences:
        if number not in self._tokenized:
            text, has_names = self._texts[number - 1], self._has_names[number - 1]
            self._tokenized[number] = TokenizedSentences(text, self._stem, has_names=has_names)
        return self._tokenized[number]

    def _list_neighbors(self) -> frozenset[tuple[str, str]]:
        if self._neighbors is None:
            numbers = range(1, len(self._texts) + 1)
            self._neighbors = frozenset(
                pair for number in numbers for pair in pairwise(self._tokenize(number).terms)
            )
        return self._neighbors

    def measure_together(self, sentence: str, numbers: Sequence[int]) -> float:
        """Return the support of a sentence by several passages combined, from 0 to 1.

        Each passage contributes its best window; terms missing in one may be in another. Subclasses
        that override ``measure`` are asked passage by passage.
        """
        alone = [self.measure(sentence, number) for number in numbers]
        sentence = BULLET.sub("", sentence)
        weights = self._weight_terms(sentence)
        total = sum(weights.values())
        if len(numbers) < 2 or not total or type(self).measure is not SourceTexts.measure:
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
        if not (extract_numbers(sentence) <= known and is_negated(sentence) <= negated):
            return max(alone)
        if any(self._has_substitution(sentence, number) for number in numbers):
            return max(alone)
        return max(*alone, _weigh_words(weights, terms) / total)

    def find(self, sentence: str) -> GroundednessScore:
        """Return the best support of a sentence; ties go to the lower number."""
        best = GroundednessScore(0, 0.0)
        for number in range(1, len(self._passages) + 1):
            score = self.measure(sentence, number)
            if score > best.score:
                best = GroundednessScore(number, score)
        return best

    def has_claim(self, sentence: str) -> bool:
        """Return whether a sentence makes a checkable claim beyond the question."""
        sentence = BULLET.sub("", sentence)
        terms = self._terms(sentence)
        return bool(
            terms - self._open_question_terms or (terms and self._extends_question(sentence))
        )

    def is_restated(self, sentence: str) -> bool:
        """Return whether a sentence has checkable words and only restates the question."""
        sentence = BULLET.sub("", sentence)
        terms = self._terms(sentence)
        return (
            bool(terms) and terms <= self._question_terms and not self._extends_question(sentence)
        )

    def _extends_question(self, sentence: str) -> bool:
        """Return whether a sentence of the question's words negates it or adds to it."""
        if is_negated(sentence) != self._is_question_negated:
            return True
        return not self._informative_stop_words(sentence) <= self._question_stop_words

    def _weight_terms(self, sentence: str) -> dict[str, float]:
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
            windows.append(_Window(self._terms(part), extract_all_numbers(part), is_negated(part)))
        return windows

    def _clauses(self, sentence: str) -> list[_Clause]:
        parts = [part for part in _CLAUSE_BREAK.split(sentence) if part.strip()]
        return [(self._terms(part), is_negated(part)) for part in parts]

    def _covers_names(self, sentence: str, number: int) -> bool:
        """Return whether the passage has every name of a sentence, in any inflection."""
        if not self._has_names[number - 1]:
            return True
        words = self._words[number - 1]
        return all(
            self._all_terms(name) & words or self._is_everywhere(name)
            for name in extract_names(sentence)
        )

    def _is_everywhere(self, name: str) -> bool:
        """Return whether a name is common in a large index, as its general subject is."""
        idf = self._lexicon.idf
        common = min(map(idf, sorted(self._all_terms(name))), default=0.0) < _COMMON_IDF
        return common and idf(_UNSEEN_TERM) > _RARE_IDF

    def _all_terms(self, text: str) -> frozenset[str]:
        return frozenset(NUMBER_WORDS.get(term, term) for term in self._analyzer.terms(text))

    def stem(self, word: str) -> str:
        """Return the term of a word; empty for a stop word."""
        terms = self._analyzer.terms(word)
        return "" if not terms or terms[0] in self._analyzer.stop_words else terms[0]


def extract_names(text: str) -> list[str]:
    """Return the capitalized words that do not begin a sentence."""
    starts = [start for start, _ in split_sentences(text)]
    names = []
    for match in _NAME.finditer(text):
        if not match.group()[0].isupper():
            continue
        start = max((begin for begin in starts if begin <= match.start()), default=0)
        if text[start : match.start()].strip(_QUOTES):
            names.append(match.group())
    return names


def _capitalizes_nouns(text: str) -> bool:
    """Return whether a text capitalizes all nouns, as German does."""
    words = [word.casefold() for word in _WORD.findall(text)]
    german, english = (
        sum(word in STOP_WORDS[language] for word in words) for language in ("german", "english")
    )
    return german > english and len(extract_names(text)) > _MAX_NAME_SHARE * len(words)


def _is_open_question(question: str) -> bool:
    """Return whether the answer to a question cannot be one of its own words."""
    words = set(_WORD.findall(question.casefold()))
    is_open = bool(words & _QUESTION_WORDS) or _REQUEST.match(question) is not None
    return is_open and not words & _CHOICE_WORDS


def extract_all_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, including number words as digits."""
    words = (word.casefold() for word in _WORD.findall(text))
    return extract_numbers(text) | {
        "1" if word == "one" else NUMBER_WORDS[word]
        for word in words
        if word == "one" or word in NUMBER_WORDS
    }


def _weigh_words(weights: Mapping[str, float], terms: frozenset[str]) -> float:
    return sum(weight for term, weight in weights.items() if term in terms)


def extract_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, without thousands separators."""
    return frozenset(number.replace(",", "") for number in _NUMBER.findall(text))


def is_negated(text: str) -> bool:
    """Return whether a text contains a negation."""
    return bool(_NEGATION.search(text))
