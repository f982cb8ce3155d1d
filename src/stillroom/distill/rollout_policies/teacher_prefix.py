"""Teacher prefix: teacher-generated beginning of shrinking length, continued by the student.

Source: a curriculum between sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947) and
the student's own text (arXiv:2306.13649); no one paper's algorithm. The teacher's part of
``max_new_tokens`` falls in a straight line from ``first`` to ``last`` over ``until`` of the run, so
that a student that cannot yet keep a text going learns to continue a good one.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.types import DecodeStep, SampledTokens, StepState, TextSource

__all__ = ["TeacherPrefix"]


class TeacherPrefix(RolloutPolicy):
    """The teacher writes the first part, whose length falls over the run."""

    paper: ClassVar[str] = "arXiv:2306.13649"

    first: float = Field(
        default=1.0, ge=0, le=1, description="the teacher's share of max_new_tokens at the start"
    )
    last: float = Field(default=0.0, ge=0, le=1, description="and where the curriculum ends")
    until: float = Field(
        default=0.8, gt=0, le=1, description="share of the run after which it has ended"
    )
    student_share: float = Field(
        default=1.0, ge=0, le=1, description="share of the steps on such text; the rest records"
    )

    @property
    @override
    def learns_from_others(self) -> bool:
        return self.warm_up > 0 or self.student_share < 1 or self.may_need_teacher

    @property
    @override
    def may_need_teacher(self) -> bool:
        return max(self.first, self.last) > 0

    @override
    def decide(self, moment: StepState) -> TextSource:
        return "student" if moment.draw < self.student_share else "records"

    @override
    def wants_teacher(self, place: int, share: float) -> bool:
        done = min(share / self.until, 1.0)
        return place < round((self.first + (self.last - self.first) * done) * self.max_new_tokens)

    @override
    def choose(self, turn: DecodeStep) -> SampledTokens:
        import torch

        is_teachers = self.wants_teacher(turn.place, turn.share)
        side = turn.teacher if is_teachers else turn.student
        if side is None:
            raise ValueError("a teacher's prefix needs the teacher")
        tokens = turn.draw(side, 0)
        chances = side.gather(-1, tokens[:, None]).squeeze(-1)
        return SampledTokens(
            tokens, chances, torch.full_like(tokens, not is_teachers, dtype=torch.bool)
        )
