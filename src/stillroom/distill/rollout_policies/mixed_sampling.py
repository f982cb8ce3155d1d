"""Mixed sampling: tokens from a teacher-student mixture, with importance weights (MiniLLM).

Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.2, equation 5: tokens are sampled from
p~ = a p + (1 - a) q, which prevents text that only exploits the loss, with importance weight
q / p~. As in the paper the weight is per token, not the product over the text, whose variance would
be too large. All tokens count as the student's.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.types import DecodeStep, SampledTokens

__all__ = ["MixedSampling"]


class MixedSampling(RolloutPolicy):
    """Teacher-mixed text with importance weights, for MiniLLM's policy gradient."""

    paper: ClassVar[str] = "arXiv:2306.08543"
    generates_with_teacher: ClassVar[bool] = True

    teacher_share: float = Field(
        default=0.2, ge=0, lt=1, description="weight of the teacher in the mixture (alpha)"
    )
    student_share: float = Field(
        default=1.0, ge=0, le=1, description="share of steps on such text; the others use records"
    )

    @property
    @override
    def may_need_teacher(self) -> bool:
        return self.teacher_share > 0

    @override
    def needs_teacher_at(self, position: int, share: float) -> bool:
        return self.teacher_share > 0

    @override
    def choose(self, turn: DecodeStep) -> SampledTokens:
        import torch

        mixed = turn.student
        if turn.teacher is not None:
            mixed = torch.lerp(turn.student, turn.teacher, self.teacher_share)
        tokens = turn.draw(mixed, 0)
        chances = mixed.gather(-1, tokens[:, None]).squeeze(-1)
        return SampledTokens(tokens, chances, torch.ones_like(tokens, dtype=torch.bool))
