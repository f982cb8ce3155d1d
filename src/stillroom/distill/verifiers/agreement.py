"""Keeps the completions whose final answer most completions of the prompt agree on.

Source: Wang et al. 2022 (self-consistency), arXiv:2203.11171, section 2; used as a filter by Huang
et al. 2022, arXiv:2210.11610. Needs no answer of the record's own. Where two answers have equally
many votes, the one that was drawn first stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.verifying import Judgement, Verifier
from stillroom.evaluate.final_answer import find_answer, same_answer
from stillroom.records import Prompt, Record

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Agreement"]


class Agreement(Verifier):
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
    ) -> list[Judgement]:
        found = [find_answer(text, self.find) for text in texts]
        votes = [sum(bool(one) and same_answer(one, other) for other in found) for one in found]
        most = max(votes, default=0)
        if not most or most < self.least_share * len(texts):
            return [Judgement(reason="too few agree") for _ in texts]
        winner = found[votes.index(most)]
        return [
            Judgement(most / len(texts))
            if one and same_answer(one, winner)
            else Judgement(reason="outvoted")
            for one in found
        ]
