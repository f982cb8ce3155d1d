"""Decontaminate: no held-out record or benchmark item in training records (n-gram overlap).

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-gram overlap). Differs: the criterion is
the share of an item's information that occurs, in order, within a span of the training text, so
that a changed word here and there hides nothing, and short items are found verbatim. Questions are
matched apart from their passages, and code is found under other identifiers by its structure.
Besides the run's own held-out side, ``against`` names files of test items; those are kept out of
the held-out side too. Matches are found by ``text.dedup.decontamination``; rewordings are found by
the filter ``reworded``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT, Reference
from stillroom.records import Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers, read_benchmark_items
from stillroom.synth.dedup.word_search import CodeFinder, WordFinder
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.dedup.decontamination import count_document_frequencies

__all__ = ["Decontaminate"]

_FIELDS = ("question", "answer")
_MIN_WORDS = 6


class Decontaminate(Filter):
    """Drop training records and passages that contain a held-out or named test item."""

    paper: ClassVar[str] = "arXiv:2005.14165"
    accepts_passages: ClassVar[bool] = True

    against: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        (),
        description="files or artifacts of records whose questions must not occur: benchmarks, "
        "your own test set",
    )
    near: float = Field(
        0.65,
        gt=0,
        le=1,
        description="share of an item's words, in order, from which it counts as present",
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return FilterResult(True, score=0.0)

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _DecontaminateState(self, context)


class _DecontaminateState(FilterState):
    """The test items; the run's own are left out while the held-out side itself is judged."""

    def __init__(self, settings: Decontaminate, context: FilterContext) -> None:
        held_out = {text for record in context.held_out for text in _list_items(record)}
        named = {item.text: item for item in read_benchmark_items(settings.against)}
        self._items, self._near = sorted(held_out | named.keys()), settings.near
        self._where = {text: f"{item.file}:{item.row} " for text, item in named.items()}
        # words common in these documents distinguish questions about them the least
        frequency, count = count_document_frequencies(
            passage.text for passage in context.passages.values()
        )
        answers = [named[text].answer if text in named else "" for text in self._items]
        code = CodeFinder(zip(self._items, answers, strict=True))
        for passage in context.passages.values():
            code.count(passage.text)
        self._finder = WordFinder(
            self._items,
            BenchmarkAnswers(answers),
            frequency=frequency,
            texts=count,
            near=settings.near,
            code=code,
        )

    def judge(self, record: Record) -> FilterResult:
        match = self._finder.find(record)
        if match is None:
            return FilterResult(True, score=0.0)
        item = self._items[match.item]
        where = self._where.get(item, "")
        reason = "holds a named test item" if where else "held-out text in training"
        return FilterResult(False, reason, match.share, self._near, against=f"{where}{item}")


def _list_items(record: Record) -> list[str]:
    """Return a held-out record's question and answer; without such fields, what its user asks.

    A turn of few words ("Continue.") is part of many dialogues.
    """
    fields = [get_text_field(record, name) for name in _FIELDS]
    asked = [message.content for message in record.messages if message.role == "user"]
    long = [text for text in asked if len(text.split()) >= _MIN_WORDS]
    return list(filter(None, fields)) or long
