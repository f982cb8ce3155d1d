"""Length: question, answer and whole record within token bounds.

Own method. Words or characters can be counted instead; words are those of every script (one
character each, in scripts without spaces).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.interfaces import BoundFilter, Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_last_answer, get_prompt_messages
from stillroom.text.unicode import split_words

__all__ = ["Length"]


class Length(Filter):
    """Drop records that are too short or too long."""

    paper: ClassVar[str] = ""
    accepts_passages: ClassVar[bool] = True

    unit: Literal["tokens", "words", "characters"] = Field(
        "tokens", description="unit of the bounds; outside of a run words are counted for tokens"
    )
    tokenizer: Reference = Field(
        DEFAULT_TEACHER,
        description="checkpoint whose tokens are counted: the one to be trained",
    )
    min_asked: int = Field(1, ge=0, description="minimum size of everything before the answer")
    max_asked: int = Field(4096, ge=1, description="maximum size of everything before the answer")
    min_answer: int = Field(1, ge=0, description="minimum size of the answer")
    max_answer: int = Field(4096, ge=1, description="maximum size of the answer")
    max_total: int = Field(8192, ge=1, description="maximum size of the whole record")

    @override
    def judge(self, record: Record) -> FilterResult:
        return self._weigh(record, len if self.unit == "characters" else _count_words)

    @override
    def start(self, context: FilterContext) -> FilterState:
        if self.unit != "tokens":
            return self
        count = context.models.counter(self.tokenizer)
        return BoundFilter(lambda record: self._weigh(record, count))

    def _weigh(self, record: Record, count: Callable[[str], int]) -> FilterResult:
        prompt_texts = [message.content for message in get_prompt_messages(record)]
        prompt_size, answer_size = sum(map(count, prompt_texts)), count(get_last_answer(record))
        bounds: list[tuple[str, int, int | None, int]] = [
            ("answer", answer_size, self.min_answer, self.max_answer),
            ("whole", prompt_size + answer_size, None, self.max_total),
        ]
        if prompt_texts:
            bounds.insert(0, ("question", prompt_size, self.min_asked, self.max_asked))
        for name, size, least, most in bounds:
            if least is not None and size < least:
                return FilterResult(False, f"{name} too short", float(size), float(least))
            if size > most:
                return FilterResult(False, f"{name} too long", float(size), float(most))
        return FilterResult(True, score=float(prompt_size + answer_size))


def _count_words(text: str) -> int:
    return len(split_words(text))
