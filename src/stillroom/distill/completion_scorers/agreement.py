"""Self-consistency: completions whose final answer is the majority answer of the prompt.

Source: Wang et al. 2022 (self-consistency), arXiv:2203.11171, section 2; used as a filter by Huang
et al. 2022, arXiv:2210.11610. Needs no reference answer. Ties go to the answer generated first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import CompletionScorer
from stillroom.distill.types import CompletionScore
from stillroom.evaluate.final_answer import extract_answer, is_same_answer
from stillroom.records import Prompt, Record

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Agreement"]


class Agreement(CompletionScorer):
    """Share of completions with the same final answer; only the largest group is kept."""

    paper: ClassVar[str] = "arXiv:2203.11171"

    find: Literal["marked", "number", "whole"] = Field(
        default="marked", description="location of the answer, as in the scorer 'answer'"
    )
    least_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of completions that must agree; below it the prompt is dropped",
    )

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        answers = [extract_answer(text, self.find) for text in texts]
        votes = [
            sum(bool(answer) and is_same_answer(answer, other_answer) for other_answer in answers)
            for answer in answers
        ]
        majority = max(votes, default=0)
        if not majority or majority < self.least_share * len(texts):
            return [CompletionScore(reason="too few agree") for _ in texts]
        winner = answers[votes.index(majority)]
        return [
            CompletionScore(majority / len(texts))
            if answer and is_same_answer(answer, winner)
            else CompletionScore(reason="outvoted")
            for answer in answers
        ]
