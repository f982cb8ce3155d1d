"""Speculative sampling: student proposals, replaced by the teacher where it rejects them.

Source: Xu et al. 2024 (SKD), arXiv:2410.11325, algorithm 1: a proposal that is not among the
teacher's ``accept_top_k`` most likely tokens is replaced by a sample of the teacher. Early in
training that is nearly the teacher's text, later nearly the student's, without a schedule. Differs
from the paper: the teacher judges each token as it is proposed, not blocks, which gives the same
text with more calls; replaced tokens count as the teacher's.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.types import DecodeStep, SampledTokens

__all__ = ["Speculative"]


class Speculative(RolloutPolicy):
    """Interleaved sampling: the student's proposals, the teacher's replacements."""

    paper: ClassVar[str] = "arXiv:2410.11325"
    generates_with_teacher: ClassVar[bool] = True
    draws_from_student: ClassVar[bool] = False

    accept_top_k: int = Field(
        default=25, ge=1, description="accept a proposal among the teacher's top k tokens"
    )
    student_share: float = Field(
        default=1.0, ge=0, le=1, description="share of steps on such text; the others use records"
    )

    @property
    @override
    def may_need_teacher(self) -> bool:
        return True

    @override
    def needs_teacher_at(self, position: int, share: float) -> bool:
        return True

    @override
    def choose(self, turn: DecodeStep) -> SampledTokens:
        import torch

        if turn.teacher is None:
            raise ValueError("speculative sampling needs the teacher")
        proposed = turn.draw(turn.student, 0)
        top = min(self.accept_top_k, turn.teacher.shape[-1])
        accepted = turn.teacher.topk(top, -1).indices  # (B, K)
        is_accepted = (accepted == proposed[:, None]).any(-1)
        tokens = torch.where(is_accepted, proposed, turn.draw(turn.teacher, 1))
        index = tokens[:, None]
        student_chance, teacher_chance = (
            side.gather(-1, index).squeeze(-1) for side in (turn.student, turn.teacher)
        )
        missed = 1 - turn.student.gather(-1, accepted).sum(-1)
        is_acceptable = (accepted == index).any(-1)
        # a token is either an accepted proposal, or a replacement of a rejected one
        chances = student_chance * is_acceptable + missed.clamp(min=0) * teacher_chance
        return SampledTokens(tokens, chances, is_accepted)
