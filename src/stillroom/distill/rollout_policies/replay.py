"""Replay buffer: reuse of student text, adapted to the validation loss.

Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.2 and algorithm 1. The share of steps
on the student's text starts at ``level`` and rises by ``level_step`` whenever the held-out loss
exceeds the previous one by more than ``margin``. A part of these steps generates new text (all of
them while the buffer is not full), according to ``schedule``; the others sample from the buffer.
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
    """Adaptive off-policy training: records first, then increasingly stored student text."""

    paper: ClassVar[str] = "arXiv:2402.03898"
    adapts_to_loss: ClassVar[bool] = True

    level: float = Field(
        default=0.0, ge=0, le=1, description="initial share of steps on the student's text"
    )
    level_step: float = Field(
        default=0.1, ge=0, le=1, description="increase of the share when validation gets worse"
    )
    margin: float = Field(
        default=0.1,
        ge=0,
        description="increase of the held-out loss that counts as worse, in nats per token",
    )
    buffer: int = Field(default=1000, ge=1, description="capacity in rollouts; drops the oldest")
    schedule: Literal["decreasing", "constant", "increasing"] = Field(
        default="decreasing",
        description="share of newly generated text over the run: from all to none, half "
        "throughout, or from none to all",
    )
    validate_every: int = Field(default=50, ge=1, description="steps between validations")
    validation_records: int = Field(
        default=32, ge=1, description="number of held-out records for validation, from the first"
    )

    @property
    @override
    def start_level(self) -> float:
        return self.level

    @property
    @override
    def generated_share(self) -> float:
        return (1 - self.warm_up) * float(self.level > 0 or self.level_step > 0)

    @property
    @override
    def validation_count(self) -> int:
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
