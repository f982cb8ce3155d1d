"""Decontaminate: nothing of the held-out questions and answers is in the training records.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-gram overlap). Differs: n-grams are no
longer than the item itself, since a question of nine words could never match 13; what counts is the
share of the held-out item's n-grams that a training record holds.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.evidence import text_of
from stillroom.synth.method import Context, Filter, Judge, Verdict
from stillroom.text.normalize import words
from stillroom.text.similarity import NgramIndex

__all__ = ["Decontaminate"]

_FIELDS = ("question", "answer")


class Decontaminate(Filter):
    """Drops training records and passages that hold a held-out question or answer."""

    paper: ClassVar[str] = "arXiv:2005.14165"
    judges_passages: ClassVar[bool] = True

    n: int = Field(8, ge=2, le=50, description="words of an n-gram; less where an item is shorter")
    min_words: int = Field(
        5, ge=1, description="held-out items of fewer words are matched as a whole record only"
    )
    max_overlap: float = Field(
        0.5, ge=0, le=1, description="share of an item's n-grams a training record may hold"
    )

    @override
    def judge(self, record: Record) -> Verdict:
        return Verdict(True, score=0.0)

    @override
    def begin(self, context: Context) -> Judge:
        return _Items(self, context)


class _Items:
    """The held-out items; empty while the held-out side itself is judged."""

    def __init__(self, chosen: Decontaminate, context: Context) -> None:
        self._max_overlap = chosen.max_overlap
        texts = {text_of(record, name) for record in context.held_out for name in _FIELDS}
        items = [tuple(words(text)) for text in sorted(texts)]
        self._whole = {item for item in items if item}
        long = [" ".join(item) for item in items if len(item) >= chosen.min_words]
        self._index = NgramIndex(long, n=chosen.n)

    def judge(self, record: Record) -> Verdict:
        overlap = 0.0
        for message in record.messages:
            if tuple(words(message.content)) in self._whole:
                return Verdict(False, "held-out text in training", 1.0)
            overlap = max(overlap, self._index.best(message.content)[1])
        if overlap > self._max_overlap:
            return Verdict(False, "held-out text in training", overlap)
        return Verdict(True, score=overlap)

    def admit(self, record: Record) -> None:
        """Remember nothing: what is held out is fixed before training records are judged."""
