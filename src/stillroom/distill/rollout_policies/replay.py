"""Replay buffer: student text reused adaptively, as validation loss requires.

Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.2 and algorithm 1. The share of steps
on the student's text begins at ``level`` and rises by ``level_step`` whenever the loss on held-out
records is more than ``margin`` above the one before. Of these steps a part writes anew (while the
buffer is not full: all of them), which follows ``schedule``; the others draw from the buffer.
Differs from the released code: validation every ``validate_every`` steps instead of every epoch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.types import StepState, TextSource

__all__ = ["Replay"]


class Replay(RolloutPolicy):
    """Adaptive off-policy: records first, then ever more of the student's text, mostly kept."""

    paper: ClassVar[str] = "arXiv:2402.03898"
    learns_of_loss: ClassVar[bool] = True

    level: float = Field(
        default=0.0, ge=0, le=1, description="share of steps on the student's text at the start"
    )
    level_step: float = Field(
        default=0.1, ge=0, le=1, description="what the share rises by when validation gets worse"
    )
    margin: float = Field(
        default=0.1,
        ge=0,
        description="rise of the held-out loss that counts as worse, in nats per token",
    )
    buffer: int = Field(default=1000, ge=1, description="rollouts kept; the oldest give way")
    schedule: Literal["decreasing", "constant", "increasing"] = Field(
        default="decreasing",
        description="how the part that is written anew goes over the run: from all to nothing, "
        "half throughout, from nothing to all",
    )
    validate_every: int = Field(default=50, ge=1, description="steps between validations")
    validation_records: int = Field(
        default=32, ge=1, description="held-out records validated on, the first ones"
    )

    @property
    @override
    def start_level(self) -> float:
        return self.level

    @property
    @override
    def validated(self) -> int:
        return self.validation_records

    @property
    @override
    def capacity(self) -> int:
        return self.buffer

    @override
    def decide(self, moment: StepState) -> TextSource:
        if moment.draw >= moment.level:
            return "records"
        parts = {"decreasing": 1 - moment.share, "constant": 0.5, "increasing": moment.share}
        is_fresh = moment.kept < self.buffer or moment.draw < moment.level * parts[self.schedule]
        return "student" if is_fresh else "replay"

    @override
    def validates(self, step: int, steps: int) -> bool:
        return step % self.validate_every < self.reuse

    @override
    def adapt(self, level: float, before: float | None, loss: float) -> float:
        is_worse = before is not None and loss >= before + self.margin
        return min(level + self.level_step, 1.0) if is_worse else level
