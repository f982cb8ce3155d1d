"""Teacher prefix: the teacher generates a beginning of shrinking length, the student continues it.

Source: a curriculum between sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947) and
the student's own text (arXiv:2306.13649); not the algorithm of one paper. The teacher's share of
``max_new_tokens`` decreases linearly from ``first`` to ``last`` over ``until`` of the run, so that
a weak student learns to continue good text first.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.types import DecodeStep, SampledTokens

__all__ = ["TeacherPrefix"]


class TeacherPrefix(RolloutPolicy):
    """The teacher generates a prefix whose length decreases over the run."""

    paper: ClassVar[str] = "arXiv:2306.13649"
    generates_with_teacher: ClassVar[bool] = True

    first: float = Field(
        default=1.0, ge=0, le=1, description="initial prefix length as a share of max_new_tokens"
    )
    last: float = Field(default=0.0, ge=0, le=1, description="final prefix length, likewise")
    until: float = Field(
        default=0.8, gt=0, le=1, description="share of the run after which the length is final"
    )
    student_share: float = Field(
        default=1.0, ge=0, le=1, description="share of steps on such text; the others use records"
    )

    @property
    @override
    def uses_other_text(self) -> bool:
        return super().uses_other_text or self.may_need_teacher

    @property
    @override
    def may_need_teacher(self) -> bool:
        return max(self.first, self.last) > 0

    @override
    def needs_teacher_at(self, position: int, share: float) -> bool:
        done = min(share / self.until, 1.0)
        return position < round(
            (self.first + (self.last - self.first) * done) * self.max_new_tokens
        )

    @override
    def choose(self, turn: DecodeStep) -> SampledTokens:
        import torch

        by_teacher = self.needs_teacher_at(turn.place, turn.share)
        probabilities = turn.teacher if by_teacher else turn.student
        if probabilities is None:
            raise ValueError("teacher_prefix needs the teacher")
        tokens = turn.draw(probabilities, 0)
        chances = probabilities.gather(-1, tokens[:, None]).squeeze(-1)
        return SampledTokens(
            tokens, chances, torch.full_like(tokens, not by_teacher, dtype=torch.bool)
        )
