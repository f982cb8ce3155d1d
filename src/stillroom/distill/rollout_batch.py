"""Micro-batches that hold rollouts: which positions the student wrote, and how each was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.distill.encode import Batch, Lesson, make_batch
from stillroom.distill.rollout_text import RolloutLesson
from stillroom.distill.targets import Target

__all__ = ["Drawn", "make_rollout_batch"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """How the token at each of N positions was drawn; (N,) each, 0 where it stands in a record.

    Args:
        old: The student's log-probability of it when it was drawn, at temperature 1.
        importance: The student's probability of it over that with which it was drawn.
        gains: The teacher's log-probability of it minus ``old``.
        credit: What a policy gradient credits it with.
    """

    old: Tensor
    importance: Tensor
    gains: Tensor
    credit: Tensor

    def rows(self, start: int, stop: int) -> Drawn:
        """Return positions ``start`` to ``stop``."""
        return Drawn(
            self.old[start:stop],
            self.importance[start:stop],
            self.gains[start:stop],
            self.credit[start:stop],
        )


def make_rollout_batch(
    lessons: Sequence[Lesson], device: torch.device | None = None, target: Target | None = None
) -> Batch:
    """Return a micro-batch of rollouts and records; it marks what the student wrote itself.

    Args:
        lessons: Of both kinds.
        device: Of the student.
        target: What the teacher says at their positions; None where it is run, or not asked.
    """
    plain = make_batch(lessons, target, device)

    def join(name: str, kind: Any) -> Tensor:
        parts = []
        for lesson in lessons:
            values = getattr(lesson, name) if isinstance(lesson, RolloutLesson) else None
            parts.append(np.zeros(len(lesson.positions), kind) if values is None else values)
        return torch.from_numpy(np.concatenate(parts)).to(device)

    drawn = Drawn(*(join(name, np.float32) for name in ("old", "importance", "gains", "credit")))
    return replace(plain, rollout=join("own", np.bool_), drawn=drawn)
