"""Score by lexical overlap, with exact numbers, names and negations, and by what a reader answers.

The score is defined in ``stillroom.rag.groundedness.score``. Words do not say to whom a statement
belongs, so a sentence that repeats an open English question is also held against a reader: if the
passage has a much better short answer than any that touches what the sentence adds to the question,
the sentence is not supported. Synonyms, arithmetic and inference are not recognized.

Source: Wang et al. 2020, "Asking and Answering Questions to Evaluate the Factual Consistency of
Summaries" (QAGS), arXiv:2004.04228. Differs: the question is the user's own, and the logits of two
answers are compared instead of their words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.analysis.stop_words import QUESTION_WORDS
from stillroom.rag.answer_selection.reader import BUILTIN_READER, open_available_reader
from stillroom.rag.groundedness.claims import BULLET
from stillroom.rag.groundedness.roles import is_english
from stillroom.rag.groundedness.score import SourceTexts
from stillroom.rag.groundedness.substitutions import TokenizedSentences
from stillroom.rag.interfaces import GroundednessChecker
from stillroom.rag.observability import add_warning
from stillroom.text.language import split_sentences
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.overlap import OverlapReader
    from stillroom.rag.answer_selection.reader import SentenceReader
    from stillroom.rag.index.searcher import Index

__all__ = ["Overlap"]

_WINDOW = 3  # sentences that the reader reads
_MIN_SHARE = 0.85  # of the question's idf: a sentence with less may tell something else
_MIN_WORDS = 2  # of a question: all that is told of a thing repeats "What is AutoGen?"
_MAX_MARGIN = 12.0  # of logits: no true sentence of 12 articles was lost, see the lab notebook
_AMOUNT = re.compile(r"\b(?:how (?:many|much|old|long|far|often)|when|year)\b", re.IGNORECASE)


class Overlap(GroundednessChecker):
    """Idf-weighted coverage of a sentence's words, and a reader's answer to the question."""

    paper: ClassVar[str] = "arXiv:2004.04228"

    reader: str = Field(
        BUILTIN_READER,
        min_length=1,
        description="reader that answers the question, too: builtin:reader, or the folder of a job "
        "of kind rag.reader; builtin:overlap to compare words alone",
    )

    @override
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        return _ReadTexts(passages, index, self._open_reader)

    @property
    @override
    def moment(self) -> str:
        return open_available_reader(self.reader)[0].fingerprint

    def _open_reader(self) -> SentenceReader | OverlapReader:
        reader, why = open_available_reader(self.reader)
        if why:
            add_warning(f"support is checked by shared words alone, since {why}")
        return reader


class _ReadTexts(SourceTexts):
    """Passages that a reader asks the question, too; it is opened when it is needed."""

    def __init__(
        self,
        passages: Sequence[str],
        index: Index,
        open_reader: Callable[[], SentenceReader | OverlapReader],
    ) -> None:
        super().__init__(passages, index.analyzer, index.lexicon)
        self._open_reader = cache(open_reader)
        self._question, self._asked = "", frozenset[str]()
        self._idf = lru_cache(maxsize=4096)(index.lexicon.idf)

    @override
    def set_question(self, question: str) -> None:
        super().set_question(question)
        asking = set(map(self._stem, QUESTION_WORDS))
        self._asked = self._terms(question) - asking
        is_asked = (
            self._open_question_terms and len(self._list_terms(question) - asking) >= _MIN_WORDS
        )
        self._question = question if is_asked and is_english(question) else ""

    @override
    def _has_substitution(
        self, sentence: str, number: int, neighbors: Collection[tuple[str, str]] = ()
    ) -> bool:
        """Also if the passage has a better answer."""
        return self._measure_margin(sentence, number) > _MAX_MARGIN or super()._has_substitution(
            sentence, number, neighbors
        )

    def _list_terms(self, text: str) -> frozenset[str]:
        words = TokenizedSentences(text, self._stem)
        return frozenset(term for term, kind in zip(words.terms, words.kinds, strict=True) if kind)

    def _measure_margin(self, sentence: str, number: int) -> float:
        """Return the margin of a passage's answer over what the sentence adds to the question.

        0 if the sentence does not repeat the question, or is the passage's own.
        """
        text = self._passages[number - 1].text
        if not (
            self._question and self._repeats_question(sentence) and is_english(text, least=0)
        ) or normalize_text(sentence) in normalize_text(text):
            return 0.0
        added, window = self._list_added(sentence), self._find_window(sentence, text)
        found = TokenizedSentences(window, self._stem)
        places = [
            span
            for term, kind, span in zip(found.terms, found.kinds, found.spans, strict=True)
            if kind and term in added
        ]
        return self._open_reader().compare_answers(self._question, window, places)

    def _repeats_question(self, sentence: str) -> bool:
        shared = self._weigh(self._asked & self._terms(sentence))
        return shared >= _MIN_SHARE * self._weigh(self._asked)

    def _weigh(self, terms: frozenset[str]) -> float:
        return sum(map(self._idf, sorted(terms)))

    def _list_added(self, sentence: str) -> frozenset[str]:
        """Return the terms by which a sentence answers: numbers and names, or else other words."""
        claim = TokenizedSentences(BULLET.sub("", sentence), self._stem)
        asked = TokenizedSentences(self._question, self._stem).positions
        numbers, names, words = (
            frozenset(
                term
                for term, kind in zip(claim.terms, claim.kinds, strict=True)
                if kind == wanted and term not in asked
            )
            for wanted in ("number", "name", "word")
        )
        if _AMOUNT.search(self._question) and numbers:
            return numbers
        return numbers | names or words

    def _find_window(self, sentence: str, text: str) -> str:
        """Return the sentences of a passage that share most with a sentence and the question."""
        spans = split_sentences(text) or [(0, len(text))]
        width = min(_WINDOW, len(spans))
        terms = self._terms(sentence) | self._asked
        parts = [
            text[spans[first][0] : spans[first + width - 1][1]]
            for first in range(len(spans) - width + 1)
        ]
        return max(parts, key=lambda part: self._weigh(terms & self._terms(part)))
