"""Token F1 of completions against the reference answer.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (F1 over words).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import CompletionScorer, get_reference_answer
from stillroom.distill.types import CompletionScore
from stillroom.records import Prompt, Record
from stillroom.text.unicode import token_f1

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Overlap"]


class Overlap(CompletionScorer):
    """F1 over words against the reference answer, from 0 to 1."""

    paper: ClassVar[str] = "arXiv:1606.05250"
    needs_answer: ClassVar[bool] = True

    least: float = Field(default=0.3, ge=0, le=1, description="minimum F1 of a completion")

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        reference = get_reference_answer(record)
        scores = [token_f1(text, reference) for text in texts]
        return [
            CompletionScore(score)
            if score >= self.least
            else CompletionScore(reason="too little overlap")
            for score in scores
        ]
