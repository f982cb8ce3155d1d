"""Self-consistency: completions whose final answer is the majority answer of the prompt.

Source: Wang et al. 2022 (self-consistency), arXiv:2203.11171, section 2; used as a filter by Huang
et al. 2022, arXiv:2210.11610. Needs no answer of the record's own. Where two answers have equally
many votes, the one that was drawn first stands.
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
    """The share of completions with the same final answer; the largest group is kept."""

    paper: ClassVar[str] = "arXiv:2203.11171"

    find: Literal["marked", "number", "whole"] = Field(
        default="marked", description="where the answer stands, as in the verifier 'answer'"
    )
    least_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the completions that must agree; below it the prompt is left out",
    )

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        found = [extract_answer(text, self.find) for text in texts]
        votes = [sum(bool(one) and is_same_answer(one, other) for other in found) for one in found]
        most = max(votes, default=0)
        if not most or most < self.least_share * len(texts):
            return [CompletionScore(reason="too few agree") for _ in texts]
        winner = found[votes.index(most)]
        return [
            CompletionScore(most / len(texts))
            if one and is_same_answer(one, winner)
            else CompletionScore(reason="outvoted")
            for one in found
        ]
