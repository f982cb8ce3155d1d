"""Ranks completions by the words they share with the record's own answer.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (F1 over words).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.verifying import Judgement, Verifier, own_answer
from stillroom.records import Prompt, Record
from stillroom.text.normalize import token_f1

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Overlap"]


class Overlap(Verifier):
    """F1 over words with the record's own answer, from 0 to 1."""

    paper: ClassVar[str] = "arXiv:1606.05250"
    needs_answer: ClassVar[bool] = True

    least: float = Field(default=0.3, ge=0, le=1, description="a completion below this is rejected")

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[Judgement]:
        wanted = own_answer(record)
        scores = [token_f1(text, wanted) for text in texts]
        return [
            Judgement(score) if score >= self.least else Judgement(reason="too little overlap")
            for score in scores
        ]
