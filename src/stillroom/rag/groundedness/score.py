"""Groundedness score: how far a passage supports a sentence, by shared words (lexical overlap).

The score of a sentence against a passage is the share of the sentence's terms, weighted by their
idf in the index, that occur within a window of consecutive sentences of the passage. If the
question is known, the terms that the sentence adds to it must occur there, too. Terms found only in
the passage's title and headings count, too, but at most as much as those of the window: a receipt
does not repeat in each line that it is a receipt.

Six contradictions set the score to 0: a number missing in the window, a name missing in the
passage, a negation on one side only (each clause is compared with the clause of the passage that
shares most of its words), a substituted word, name or number (``substitutions``), an exchange of a
verb's subject and object, and "all" for the passage's "some" (``roles``). A name that is frequent
throughout a large index may be missing. A sentence that has only words of the question still makes
a claim if it is negated and the question is not, or if it has a letter or word that the question
lacks, such as the A of "vitamin A" or ``under``; the passage must have that, too.
``generation.cited_sentences`` marks lower scores than ``threshold`` as unsupported.

Not recognized: synonyms, arithmetic, inference, and to which of two adjacent names a statement
applies. A paraphrase in other words counts as unsupported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from stillroom.rag.groundedness.claims import (
    BULLET,
    capitalizes_nouns,
    extract_all_numbers,
    extract_names,
    extract_numbers,
    find_informative_stop_words,
    is_negated,
    is_open_question,
    split_clauses,
)
from stillroom.rag.groundedness.roles import (
    VerbRoles,
    find_roles,
    is_english,
    reverses_roles,
    widens_scope,
)
from stillroom.rag.groundedness.substitutions import (
    NUMBER_WORDS,
    TokenizedSentences,
    find_substitution,
    misplaces_number,
)
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.analysis.analyzer import Analyzer
    from stillroom.rag.search_engines.keyword import KeywordEngine

__all__ = ["SUPPORT_THRESHOLD", "GroundednessScore", "SourceTexts"]

SUPPORT_THRESHOLD = 0.6
_WINDOW_SENTENCES = 3
_COMMON_IDF = 1.5  # idf of a word in a quarter of the passages
_RARE_IDF = 4.0  # idf of an unseen word among thirty passages
_UNSEEN_TERM = "\0"
_Clause = tuple[frozenset[str], bool]
"""The terms of a clause, and whether it is negated."""


@dataclass(frozen=True, slots=True)
class _Window:
    """Consecutive sentences of a passage."""

    terms: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    is_negated: bool = False


@dataclass(slots=True)
class _SourcePassage:
    """A passage, prepared for comparison; ``terms`` include those of the title and headings."""

    text: str
    windows: list[_Window]
    terms: frozenset[str]
    clauses: list[_Clause]
    has_names: bool
    heading_terms: frozenset[str] = frozenset()
    words: TokenizedSentences | None = None
    roles: list[VerbRoles] | None = None


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
        self._stem = lru_cache(maxsize=4096)(self.stem)
        self._passages = [
            _SourcePassage(
                text,
                self._cut_windows(text),
                self._all_terms(text),
                [
                    clause
                    for start, end in split_sentences(text)
                    for clause in self._read_clauses(text[start:end])
                ],
                not capitalizes_nouns(text),
            )
            for text in passages
        ]
        self._neighbors: frozenset[tuple[str, str]] | None = None
        self._question_terms = frozenset[str]()
        self._open_question_terms = frozenset[str]()
        self._question_stop_words = frozenset[str]()
        self._is_question_negated = False

    def set_headings(self, headings: Sequence[str]) -> None:
        """Set the title and headings of each passage, in the order of numbers."""
        for passage, heading in zip(self._passages, headings, strict=True):
            passage.heading_terms = self._all_terms(heading)
            passage.terms |= passage.heading_terms

    def set_question(self, question: str) -> None:
        """Set the question: sentences are also judged by what they add to it.

        A question that can be answered in its own words (yes or no, one or the other) is ignored.
        """
        self._question_terms = self._all_terms(question)
        self._open_question_terms = (
            self._question_terms if is_open_question(question) else frozenset()
        )
        self._question_stop_words = find_informative_stop_words(question, self._stem)
        self._is_question_negated = is_negated(question)

    def measure(self, sentence: str, number: int) -> float:
        """Return the support of a sentence by one passage, from 0 to 1."""
        sentence = BULLET.sub("", sentence)
        idf_by_term = self._get_idf_by_term(sentence)
        if not sum(idf_by_term.values()) or not self._covers_names(sentence, number):
            return 0.0
        if not self._has_stop_words(sentence, number):
            return 0.0
        if not self._agrees(sentence, idf_by_term, number):
            return 0.0
        numbers, best = extract_numbers(sentence), 0.0
        for window in self._passages[number - 1].windows:
            if numbers <= window.numbers:
                best = max(best, self._compute_coverage(idf_by_term, window, number))
        if best >= SUPPORT_THRESHOLD and self._has_substitution(
            sentence, number, self._list_neighbors()
        ):
            return 0.0
        return best

    def measure_together(self, sentence: str, numbers: Sequence[int]) -> float:
        """Return the support of a sentence by several passages combined, from 0 to 1.

        Each passage contributes its best window; terms missing in one may be in another. Subclasses
        that override ``measure`` are asked passage by passage.
        """
        alone = [self.measure(sentence, number) for number in numbers]
        sentence = BULLET.sub("", sentence)
        idf_by_term = self._get_idf_by_term(sentence)
        total = sum(idf_by_term.values())
        if len(numbers) < 2 or not total or type(self).measure is not SourceTexts.measure:
            return max(alone, default=0.0)
        windows = [
            max(
                self._passages[number - 1].windows,
                key=lambda window: sum(idf_by_term.get(term, 0.0) for term in window.terms),
                default=_Window(),
            )
            for number in numbers
        ]
        terms = frozenset[str]().union(*(window.terms for window in windows))
        window_numbers = frozenset[str]().union(*(window.numbers for window in windows))
        is_any_negated = any(window.is_negated for window in windows)
        if not (
            extract_numbers(sentence) <= window_numbers and is_negated(sentence) <= is_any_negated
        ) or any(self._has_substitution(sentence, number) for number in numbers):
            return max(alone)
        return max(*alone, _sum_shared(idf_by_term, terms) / total)

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

    def stem(self, word: str) -> str:
        """Return the term of a word; empty for a stop word."""
        terms = self._analyzer.terms(word)
        return "" if not terms or terms[0] in self._analyzer.stop_words else terms[0]

    def _compute_coverage(
        self, idf_by_term: Mapping[str, float], window: _Window, number: int
    ) -> float:
        """Return the covered share of the terms' idf, bounded by that of the new terms."""
        known_terms = window.terms | self._passages[number - 1].heading_terms
        in_window = _sum_shared(idf_by_term, window.terms)
        with_headings = _sum_shared(idf_by_term, known_terms)
        share = min(with_headings, 2 * in_window) / sum(idf_by_term.values())
        new_terms = {
            term: idf for term, idf in idf_by_term.items() if term not in self._open_question_terms
        }
        if self._open_question_terms and new_terms:
            share = min(share, _sum_shared(new_terms, known_terms) / sum(new_terms.values()))
        return share

    def _agrees(self, sentence: str, idf_by_term: Mapping[str, float], number: int) -> bool:
        """Return whether each clause has the same negation as the passage's most similar clause.

        Ties are resolved in favor of agreement.
        """
        for terms, negated in self._read_clauses(sentence):
            clause_idf = {term: idf_by_term[term] for term in sorted(terms) if term in idf_by_term}
            agreeing, opposite = (
                max(
                    (
                        _sum_shared(clause_idf, passage_terms)
                        for passage_terms, sign in self._passages[number - 1].clauses
                        if sign == negation
                    ),
                    default=0,
                )
                for negation in (negated, not negated)
            )
            if opposite > agreeing:
                return False
        return True

    def _has_stop_words(self, sentence: str, number: int) -> bool:
        """Return whether the passage has the stop words by which a sentence answers."""
        if not self._open_question_terms or self._terms(sentence) - self._open_question_terms:
            return True
        added = find_informative_stop_words(sentence, self._stem) - self._question_stop_words
        return added <= find_informative_stop_words(self._passages[number - 1].text, self._stem)

    def _has_substitution(
        self, sentence: str, number: int, neighbors: Collection[tuple[str, str]] = ()
    ) -> bool:
        """Return whether a sentence replaces a word of the passage by another.

        ``neighbors`` are adjacent terms of all passages: what another one tells in the same words
        of another thing is no synonym of this one's.
        """
        has_names = self._passages[number - 1].has_names
        claim = TokenizedSentences(sentence, self._stem, has_names=has_names)
        source = self._tokenize(number)
        return (
            find_substitution(claim, source, neighbors) is not None
            or misplaces_number(claim, source)
            or self._reverses_roles(sentence, number)
        )

    def _reverses_roles(self, sentence: str, number: int) -> bool:
        """Return whether a sentence exchanges participants, or says of all what holds for some."""
        passage = self._passages[number - 1]
        if not is_english(passage.text, least=0):
            return False
        if passage.roles is None:
            passage.roles = find_roles(passage.text, self._stem)
        return reverses_roles(find_roles(sentence, self._stem), passage.roles) or widens_scope(
            sentence, passage.text, self._stem
        )

    def _tokenize(self, number: int) -> TokenizedSentences:
        passage = self._passages[number - 1]
        if passage.words is None:
            passage.words = TokenizedSentences(
                passage.text, self._stem, has_names=passage.has_names
            )
        return passage.words

    def _list_neighbors(self) -> frozenset[tuple[str, str]]:
        """Return the pairs of adjacent terms of all passages."""
        if self._neighbors is None:
            numbers = range(1, len(self._passages) + 1)
            self._neighbors = frozenset(
                pair for number in numbers for pair in pairwise(self._tokenize(number).terms)
            )
        return self._neighbors

    def _extends_question(self, sentence: str) -> bool:
        """Return whether a sentence of the question's words negates it or adds to it."""
        if is_negated(sentence) != self._is_question_negated:
            return True
        return not find_informative_stop_words(sentence, self._stem) <= self._question_stop_words

    def _covers_names(self, sentence: str, number: int) -> bool:
        """Return whether the passage has every name of a sentence, in any inflection."""
        passage = self._passages[number - 1]
        return not passage.has_names or all(
            self._all_terms(name) & passage.terms or self._is_everywhere(name)
            for name in extract_names(sentence)
        )

    def _is_everywhere(self, name: str) -> bool:
        """Return whether a name is common in a large index, as its general subject is."""
        idf = self._lexicon.idf
        is_common = min(map(idf, sorted(self._all_terms(name))), default=0.0) < _COMMON_IDF
        return is_common and idf(_UNSEEN_TERM) > _RARE_IDF

    def _get_idf_by_term(self, sentence: str) -> dict[str, float]:
        return {term: self._lexicon.idf(term) for term in sorted(self._terms(sentence))}

    def _terms(self, text: str) -> frozenset[str]:
        """Return the terms of a text that are not stop words, number words as digits."""
        stop_words = self._analyzer.stop_words
        terms = (term for term in self._analyzer.terms(text) if term not in stop_words)
        return frozenset(NUMBER_WORDS.get(term, term) for term in terms)

    def _all_terms(self, text: str) -> frozenset[str]:
        return frozenset(NUMBER_WORDS.get(term, term) for term in self._analyzer.terms(text))

    def _cut_windows(self, text: str) -> list[_Window]:
        spans = split_sentences(text) or [(0, len(text))]
        width = min(_WINDOW_SENTENCES, len(spans))
        windows = []
        for first in range(len(spans) - width + 1):
            window_spans = spans[first : first + width]
            part = text[window_spans[0][0] : window_spans[-1][1]]
            windows.append(_Window(self._terms(part), extract_all_numbers(part), is_negated(part)))
        return windows

    def _read_clauses(self, sentence: str) -> list[_Clause]:
        return [(self._terms(clause), is_negated(clause)) for clause in split_clauses(sentence)]


def _sum_shared(idf_by_term: Mapping[str, float], terms: frozenset[str]) -> float:
    """Return the summed idf of the terms that are among ``terms``."""
    return sum(idf for term, idf in idf_by_term.items() if term in terms)
