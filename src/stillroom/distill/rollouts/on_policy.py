"""On-policy: in a share of the steps the student learns on text that it wrote itself.

Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, algorithm 1. Whether a step's text is the
student's is drawn once an optimizer step from the seed, the same on all ranks. Differs from the
paper: ``rest: teacher`` has the teacher write the other steps' text, which is its sequence-level
baseline with whole distributions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.rollout import Moment, RolloutPolicy, TextFrom

__all__ = ["OnPolicy"]


class OnPolicy(RolloutPolicy):
    """A share of the steps is the student's text, drawn anew; the rest the records or a teacher."""

    paper: ClassVar[str] = "arXiv:2306.13649"

    student_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps on the student's text (lambda)"
    )
    rest: Literal["records", "teacher"] = Field(
        default="records", description="the other steps: the records, or text the teacher writes"
    )

    @property
    @override
    def learns_from_others(self) -> bool:
        return self.warm_up > 0 or self.student_share < 1

    @property
    @override
    def may_need_teacher(self) -> bool:
        return self.rest == "teacher"

    @property
    @override
    def written_share(self) -> float:
        return (1 - self.warm_up) * (1.0 if self.rest == "teacher" else self.student_share)

    @override
    def decide(self, moment: Moment) -> TextFrom:
        return "student" if moment.draw < self.student_share else self.rest
