"""Answer match: completions whose final answer equals the record's reference answer.

Source: Zelikman et al. 2022 (STaR), arXiv:2203.14465, section 3.1: train only on reasoning that
ends in the correct answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import CompletionScorer, get_reference_answer
from stillroom.distill.types import CompletionScore
from stillroom.evaluate.final_answer import extract_answer, extract_answers, is_same_answer
from stillroom.records import Prompt, Record

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Answer"]


class Answer(CompletionScorer):
    """Equality with the reference answer: numeric if both are numbers, else word for word."""

    paper: ClassVar[str] = "arXiv:2203.14465"
    needs_answer: ClassVar[bool] = True

    find: Literal["marked", "number", "whole"] = Field(
        default="marked",
        description="location of the answer: marked is after the last 'answer is', 'answer:' or "
        "within \\boxed{}, or else the last line; number the last number; whole the full text",
    )

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        reference = extract_answer(get_reference_answer(record), self.find)
        candidates = [extract_answers(text, self.find) for text in texts]
        return [
            CompletionScore(1.0)
            if any(is_same_answer(answer, reference) for answer in answers)
            else CompletionScore(reason="another answer" if answers else "no answer found")
            for answers in candidates
        ]
