"""Keeps a completion whose final answer is the record's own.

Source: Zelikman et al. 2022 (STaR), arXiv:2203.14465, section 3.1: reasoning is learned from only
where it ends in the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.verifying import Judgement, Verifier, own_answer
from stillroom.evaluate.final_answer import find_answer, read_answers, same_answer
from stillroom.records import Prompt, Record

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Answer"]


class Answer(Verifier):
    """Equality with the record's own answer: as numbers where both are, else word for word."""

    paper: ClassVar[str] = "arXiv:2203.14465"
    needs_answer: ClassVar[bool] = True

    find: Literal["marked", "number", "whole"] = Field(
        default="marked",
        description="where the answer stands: marked after the last 'answer is', 'answer:' or "
        "within \\boxed{}, or else the last line; number the last number; whole all of the text",
    )

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[Judgement]:
        wanted = find_answer(own_answer(record), self.find)
        found = [read_answers(text, self.find) for text in texts]
        return [
            Judgement(1.0)
            if any(same_answer(one, wanted) for one in read)
            else Judgement(reason="another answer" if read else "no answer found")
            for read in found
        ]
