"""Speculative sampling: student proposals, replaced by the teacher where it rejects them.

Source: Xu et al. 2024 (SKD), arXiv:2410.11325, algorithm 1: a proposal that is not among the
teacher's ``accept_top_k`` likeliest tokens is replaced by a draw from the teacher. Early on that is
nearly the teacher's text and late nearly the student's, without a schedule. Differs from the paper:
the teacher judges each token as it is proposed, not blocks of them, which gives the same text in
more calls; replaced tokens count as the teacher's.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.types import DecodeStep, SampledTokens, StepState, TextSource

__all__ = ["Speculative"]


class Speculative(RolloutPolicy):
    """Interleaved sampling: student's proposals, teacher's replacements."""

    paper: ClassVar[str] = "arXiv:2410.11325"
    draws_from_student: ClassVar[bool] = False

    accept_top_k: int = Field(
        default=25, ge=1, description="a proposal is kept if it is among the teacher's so many"
    )
    student_share: float = Field(
        default=1.0, ge=0, le=1, description="share of the steps on such text; the rest records"
    )

    @property
    @override
    def learns_from_others(self) -> bool:
        return self.warm_up > 0 or self.student_share < 1

    @property
    @override
    def may_need_teacher(self) -> bool:
        return True

    @override
    def decide(self, moment: StepState) -> TextSource:
        return "student" if moment.draw < self.student_share else "records"

    @override
    def wants_teacher(self, place: int, share: float) -> bool:
        return True

    @override
    def choose(self, turn: DecodeStep) -> SampledTokens:
        import torch

        if turn.teacher is None:
            raise ValueError("speculative text needs the teacher")
        proposed = turn.draw(turn.student, 0)
        top = min(self.accept_top_k, turn.teacher.shape[-1])
        liked = turn.teacher.topk(top, -1).indices  # (B, K)
        kept = (liked == proposed[:, None]).any(-1)
        tokens = torch.where(kept, proposed, turn.draw(turn.teacher, 1))
        at = tokens[:, None]
        own, theirs = (side.gather(-1, at).squeeze(-1) for side in (turn.student, turn.teacher))
        missed = 1 - turn.student.gather(-1, liked).sum(-1)
        is_liked = (liked == at).any(-1)
        # a token can come as a proposal that is kept, or in place of one that is not
        chances = own * is_liked + missed.clamp(min=0) * theirs
        return SampledTokens(tokens, chances, kept)
