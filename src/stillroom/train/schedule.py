"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore.

Knows no optimizer.
"""

from __future__ import annotations

import math

from stillroom.train.settings import TrainSettings

__all__ = ["learning_rate_at"]


def learning_rate_at(settings: TrainSettings, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0) of ``steps``.

    The warmup rises linearly and never starts at zero; the first step after it has the peak. Cosine
    and linear reach ``final_share`` of the peak at the last step.
    """
    peak = settings.learning_rate
    warmup = settings.warmup_steps(steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return peak
    done = (step - warmup) / max(steps - 1 - warmup, 1)
    if settings.schedule == "cosine":
        done = (1 - math.cos(math.pi * min(done, 1.0))) / 2
    return peak * (1 - (1 - settings.final_share) * min(done, 1.0))
