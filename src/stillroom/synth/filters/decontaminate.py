"""Decontaminate: no held-out record or benchmark item in training records.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-gram overlap). Differs: what counts is
the share of an item's information that stands, in order, within a stretch of the training text, so
that a word changed here and there hides nothing, and short items are found word for word. What is
asked stands apart from its passage, and code is found under other names by its shape. Besides
the run's own held-out side, ``against`` names files of test items; those are kept out of the
held-out side too. Rewordings are for the filter ``reworded``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.dedup.leakage import (
    BenchmarkAnswers,
    CodeFinder,
    WordFinder,
    read_benchmark_items,
)
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.dedup.contamination import count_document_frequencies

__all__ = ["Decontaminate"]

_FIELDS = ("question", "answer")


class Decontaminate(Filter):
    """Drops training records and passages that hold a held-out or a named test item."""

    paper: ClassVar[str] = "arXiv:2005.14165"
    judges_passages: ClassVar[bool] = True

    against: tuple[Reference, ...] = Field(
        (),
        description="files or artifacts of records whose questions must not be there: benchmarks, "
        "your own test set",
    )
    near: float = Field(
        0.65, gt=0, le=1, description="share of an item's words, in order, that must not be there"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return FilterResult(True, score=0.0)

    @override
    def begin(self, context: FilterContext) -> FilterState:
        return _DecontaminateState(self, context)


class _DecontaminateState:
    """The items; of the run's own there are none while the held-out side itself is judged."""

    def __init__(self, chosen: Decontaminate, context: FilterContext) -> None:
        own = {get_text_field(record, name) for record in context.held_out for name in _FIELDS}
        named = {item.text: item for item in read_benchmark_items(chosen.against)}
        self._items, self._near = sorted(own | named.keys()), chosen.near
        self._where = {text: f"{item.file}:{item.row} " for text, item in named.items()}
        # what is common in these documents tells questions about them apart the least
        frequency, count = count_document_frequencies(one.text for one in context.passages.values())
        answers = [named[text].answer if text in named else "" for text in self._items]
        code = CodeFinder(zip(self._items, answers, strict=True))
        for passage in context.passages.values():
            code.count(passage.text)
        self._finder = WordFinder(
            self._items,
            BenchmarkAnswers(answers),
            frequency=frequency,
            texts=count,
            near=chosen.near,
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

    def admit(self, record: Record) -> None:
        """Remember nothing: the items are fixed before records are judged."""
