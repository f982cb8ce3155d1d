"""What is watched of rollouts: length, end, entropy, repetition; and a warning when text collapses.

A student that learns on its own text can slip into short or repetitive text that its loss likes
(reverse KL from a student far from its teacher does so). The numbers are logged every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillroom.distill.rollout_text import Rollout

__all__ = ["CollapseWatch", "describe_rollouts", "repetition"]

_GRAM = 4
_FIRST_STEPS = 5
_MOST_REPETITION = 0.5
_LEAST_LENGTH = 0.25
_LEAST_ENTROPY = 0.1


def repetition(ids: Sequence[int], gram: int = _GRAM) -> float:
    """Return the share of runs of ``gram`` tokens that stood in the text before."""
    runs = [tuple(ids[at : at + gram]) for at in range(len(ids) - gram + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def describe_rollouts(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return what is logged of a step's rollouts: means over them, and shares."""
    if not rollouts:
        return {}
    return {
        "rollout_tokens": float(np.mean([len(one.ids) for one in rollouts])),
        "rollout_finished": float(np.mean([one.finished for one in rollouts])),
        "rollout_entropy": float(np.mean([one.entropy for one in rollouts])),
        "rollout_repetition": float(np.mean([repetition(one.ids.tolist()) for one in rollouts])),
        "rollout_own": float(np.mean([float(one.own.mean()) for one in rollouts])),
    }


class CollapseWatch:
    """Compares each step's rollouts with the first ones, and tells once what went wrong."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self._first: list[tuple[float, float]] = []
        self._told: set[str] = set()

    def see(self, numbers: dict[str, float]) -> str:
        """Take a step's numbers; return a warning, or nothing."""
        if not numbers:
            return ""
        length, entropy = numbers["rollout_tokens"], numbers["rollout_entropy"]
        if len(self._first) < _FIRST_STEPS:
            self._first.append((length, entropy))
            return ""
        usual, wide = np.mean(self._first, axis=0)
        found = {
            "repeats itself": numbers["rollout_repetition"] > _MOST_REPETITION,
            "has become short": length < _LEAST_LENGTH * usual,
            "has become certain of everything": entropy < _LEAST_ENTROPY * wide,
        }
        news = [what for what, holds in found.items() if holds and what not in self._told]
        self._told.update(news)
        if not news:
            return ""
        return (
            f"the student's own text {' and '.join(news)} ({length:.0f} tokens, entropy "
            f"{entropy:.2f}, {numbers['rollout_repetition']:.0%} repeated): lower "
            "train.learning_rate, raise rollouts.warm_up, or use method jsd or forward_kl"
        )
