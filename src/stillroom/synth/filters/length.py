"""Length: question, answer and whole record within token bounds.

Own method. Words and characters can be counted instead; words are those of every script (a
character each, where a script has no spaces).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_last_answer, get_prompt_messages
from stillroom.text.unicode import split_words

__all__ = ["Length"]


class Length(Filter):
    """Drops records that are too short or too long."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    unit: Literal["tokens", "words", "characters"] = Field(
        "tokens", description="what is counted; outside of a run tokens are taken for words"
    )
    tokenizer: Reference = Field(
        "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        description="checkpoint whose tokens are counted: the one that will be trained",
    )
    min_asked: int = Field(1, ge=0, description="fewest of all that stands before the answer")
    max_asked: int = Field(4096, ge=1, description="most of all that stands before the answer")
    min_answer: int = Field(1, ge=0, description="fewest of the answer")
    max_answer: int = Field(4096, ge=1, description="most of the answer")
    max_total: int = Field(8192, ge=1, description="most of the whole record")

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._weigh(record, len if self.unit == "characters" else _count_words)

    @override
    def begin(self, context: FilterContext) -> FilterState:
        if self.unit != "tokens":
            return self
        return _LengthState(self, context.models.counter(self.tokenizer))

    def _weigh(self, record: Record, count: Callable[[str], int]) -> FilterResult:
        asked = [message.content for message in get_prompt_messages(record)]
        before, answer = sum(map(count, asked)), count(get_last_answer(record))
        bounds: list[tuple[str, int, int | None, int]] = [
            ("answer", answer, self.min_answer, self.max_answer),
            ("whole", before + answer, None, self.max_total),
        ]
        if asked:
            bounds.insert(0, ("question", before, self.min_asked, self.max_asked))
        for name, size, least, most in bounds:
            if least is not None and size < least:
                return FilterResult(False, f"{name} too short", float(size), float(least))
            if size > most:
                return FilterResult(False, f"{name} too long", float(size), float(most))
        return FilterResult(True, score=float(before + answer))


class _LengthState:
    def __init__(self, chosen: Length, count: Callable[[str], int]) -> None:
        self._chosen, self._count = chosen, count

    def judge(self, record: Record) -> FilterResult:
        return self._chosen._weigh(record, self._count)

    def admit(self, record: Record) -> None:
        """Remember nothing: a length does not depend on what was kept."""


def _count_words(text: str) -> int:
    return len(split_words(text))
