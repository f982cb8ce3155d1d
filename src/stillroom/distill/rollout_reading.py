"""``RolloutReading``: how a rollout becomes what is learned from, in one vocabulary or in two.

``RolloutSource`` decides what each step learns from, and knows no form of it; a reading makes the
form. This file has the one for teacher and student of one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from stillroom.distill.encode import Batch, Lesson
from stillroom.distill.rollout_batch import make_rollout_batch
from stillroom.distill.rollout_text import Rollout, RolloutPrompt
from stillroom.distill.server_words import ServerWords

__all__ = ["PlainReading", "RolloutReading"]


class RolloutReading(Protocol):
    """Makes lessons of rollouts, and micro-batches of these and of records' lessons alike."""

    def read(
        self, rollout: Rollout, prompt: RolloutPrompt, credit: npt.NDArray[np.float32] | None
    ) -> Any | None:
        """Return a rollout as what is learned from; None where it cannot be read."""

    def for_teacher(self, rollout: Rollout, prompt: RolloutPrompt) -> Lesson | None:
        """Return it in the teacher's tokens, with the positions that it is asked for."""

    def learned(self, item: Any) -> Lesson:
        """Return the student's tokens and the positions that bear loss."""

    def hear(self, items: Sequence[Any]) -> None:
        """Have the teacher say what a step's micro-batches need, where it is not run in them."""

    def batch(self, items: Sequence[Any], device: torch.device) -> Any:
        """Return a micro-batch."""

    def describe(self, found: Sequence[Any | None]) -> Mapping[str, float]:
        """Return what is logged of a step's rollouts as they were read."""


class PlainReading:
    """Rollouts in the vocabulary that teacher and student share."""

    def __init__(self, words: ServerWords | None = None) -> None:
        """Set up.

        Args:
            words: Tells the teacher's distributions, where it does not run in every step and the
                method asks for them.
        """
        self._words = words

    def read(
        self, rollout: Rollout, prompt: RolloutPrompt, credit: npt.NDArray[np.float32] | None
    ) -> Lesson:
        """Return it as a lesson of its own tokens."""
        return rollout.lesson(prompt, credit)

    def for_teacher(self, rollout: Rollout, prompt: RolloutPrompt) -> Lesson:
        """Return the same: the teacher reads these tokens."""
        return rollout.lesson(prompt)

    def learned(self, item: Lesson) -> Lesson:
        """Return the lesson."""
        return item

    def hear(self, items: Sequence[Lesson]) -> None:
        """Ask the server about what is new."""
        if self._words is not None:
            self._words.hear(items)

    def batch(self, items: Sequence[Lesson], device: torch.device) -> Batch:
        """Return a micro-batch, with the server's words where there is one."""
        target = self._words.target(items, device) if self._words is not None else None
        return make_rollout_batch(items, device, target)

    def describe(self, found: Sequence[Lesson | None]) -> Mapping[str, float]:
        """Return nothing: every rollout can be read."""
        return {}
