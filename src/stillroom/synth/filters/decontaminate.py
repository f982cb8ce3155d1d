"""Decontaminate: nothing of the held-out questions and answers is in the training records.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-gram overlap). Differs: what counts is
the share of a held-out item's information that stands, in order, within a stretch of the training
text, so that a word changed here and there hides nothing, and short items are found word for word.
Rewordings are for ``stillroom synth decontaminate`` with an embedder.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.evidence import text_of
from stillroom.synth.method import Context, Filter, Judge, Verdict
from stillroom.text.contamination import ItemIndex, count_texts

__all__ = ["Decontaminate"]

_FIELDS = ("question", "answer")


class Decontaminate(Filter):
    """Drops training records and passages that hold a held-out question or answer."""

    paper: ClassVar[str] = "arXiv:2005.14165"
    judges_passages: ClassVar[bool] = True

    near: float = Field(
        0.65, gt=0, le=1, description="share of an item's words, in order, that must not be there"
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
        texts = {text_of(record, name) for record in context.held_out for name in _FIELDS}
        self._items, self._near = sorted(texts), chosen.near
        # what is common in these documents tells questions about them apart the least
        frequency, count = count_texts(one.text for one in context.passages.values())
        self._index = ItemIndex(self._items, frequency=frequency, texts=count, near=chosen.near)

    def judge(self, record: Record) -> Verdict:
        for message in record.messages:
            match = self._index.find(message.content)
            if match is not None:
                item = self._items[match.item]
                reason = "held-out text in training"
                return Verdict(False, reason, match.share, self._near, against=item)
        return Verdict(True, score=0.0)

    def admit(self, record: Record) -> None:
        """Remember nothing: what is held out is fixed before training records are judged."""
