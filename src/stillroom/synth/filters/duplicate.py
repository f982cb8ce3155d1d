"""Duplicate: no repeated question or answer, and no near duplicate (MinHash ``threshold``).

Source: Broder 1997 (MinHash, as distilabel's MinHashDedup; candidates are verified by exact Jaccard
similarity). Differs: records are compared with accepted ones only, in a fixed order, so that
nothing is dropped for resembling a dropped record. A question is all that the system and the user
say, so that dialogues may begin alike and passages may be asked the same. Equal answers make two
records duplicates only where the answer is a sentence: labels recur.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.dedup.shingles import HashArray, MinHasher, jaccard_similarity
from stillroom.text.unicode import split_words

__all__ = ["Duplicate"]

_SHOWN = 300
_HASHES = 128
_MAX_MISSED = 0.01


class Duplicate(Filter):
    """Drop records that repeat one already accepted on the same side of the split."""

    paper: ClassVar[str] = "Broder 1997"
    accepts_passages: ClassVar[bool] = True
    is_stateful: ClassVar[bool] = True

    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of word n-grams from which a record is a duplicate",
    )
    n: int = Field(3, ge=1, le=20, description="n-gram size in words")
    same_question: bool = Field(
        True, description="whether an equal question makes a record a duplicate; false: answers too"
    )
    answer_words: int = Field(
        5, ge=1, description="words from which an equal answer makes a record a duplicate"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return FilterResult(True, score=0.0)

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _DuplicateState(self)


class _DuplicateState:
    """The records accepted so far."""

    def __init__(self, settings: Duplicate) -> None:
        self._threshold, self._answer_words = settings.threshold, settings.answer_words
        self._same_question = settings.same_question
        rows = _choose_rows(settings.threshold)
        self._hasher = MinHasher(n=settings.n, num_bands=_HASHES // rows, rows=rows)
        self._questions: dict[str, int] = {}
        self._answers: dict[str, int] = {}
        self._shown: list[str] = []
        self._sets: list[HashArray] = []
        self._bands: dict[tuple[int, int], list[int]] = {}

    def judge(self, record: Record) -> FilterResult:
        question, answer = _keys(record)
        if self._same_question and question and question in self._questions:
            like = self._shown[self._questions[question]]
            return FilterResult(False, "same question as one kept", 1.0, against=like)
        if answer in self._answers and len(split_words(answer)) >= self._answer_words:
            like = self._shown[self._answers[answer]]
            return FilterResult(False, "same answer as one kept", 1.0, against=like)
        hashes, keys = self._hash(record)
        candidates = {index for band in enumerate(keys) for index in self._bands.get(band, ())}
        nearest, like_at = max(
            ((jaccard_similarity(hashes, self._sets[index]), -index) for index in candidates),
            default=(0.0, 0),
        )
        if nearest >= self._threshold:
            reason, like = "nearly the same as one kept", self._shown[-like_at]
            return FilterResult(False, reason, nearest, self._threshold, against=like)
        return FilterResult(True, score=nearest)

    def on_accept(self, record: Record) -> None:
        question, answer = _keys(record)
        self._questions.setdefault(question, len(self._sets))
        self._answers.setdefault(answer, len(self._sets))
        text = " | ".join(message.content for message in record.messages)
        self._shown.append(f"{record.id}: {text}"[:_SHOWN])
        hashes, keys = self._hash(record)
        for band in enumerate(keys):
            self._bands.setdefault(band, []).append(len(self._sets))
        self._sets.append(hashes)

    def _hash(self, record: Record) -> tuple[HashArray, list[int]]:
        hashes = self._hasher.shingles("\n".join(message.content for message in record.messages))
        if not len(hashes):  # texts without words have nothing in common
            return hashes, []
        return hashes, self._hasher.bands(self._hasher.sign_shingles([hashes]))[0].tolist()


def _choose_rows(threshold: float) -> int:
    """Return the rows of a band, at most 4, with which few pairs at the threshold are missed."""
    return next(
        (rows for rows in (4, 3, 2) if (1 - threshold**rows) ** (_HASHES // rows) <= _MAX_MISSED), 1
    )


def _keys(record: Record) -> tuple[str, str]:
    asked = [message for message in record.messages if message.role in ("system", "user")]
    question = get_text_field(record, "question")
    if any(message.role == "user" for message in asked):
        question = "\n".join(message.content for message in asked)
    texts = (question, get_text_field(record, "answer"))
    question, answer = (collapse_whitespace(text).casefold() for text in texts)
    return question, answer
