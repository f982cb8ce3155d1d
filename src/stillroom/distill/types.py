"""Data types shared by the stages of a distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AttentionHeads",
    "CompletionScore",
    "DecodeStep",
    "SampledTokens",
    "StepState",
    "TextSource",
]

LayerPairing = Literal["uniform", "last"] | tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """Queries (H, T, d), keys (K, T, d) and values (K, T, d) of one layer and record.

    Attention scores are ``scale * queries @ keys.T``, soft-capped to +-``cap`` if that is not 0.
    ``values`` is empty if queries and keys are those after rotary embeddings.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float = 1.0
    cap: float = 0.0


TextSource = Literal["student", "teacher", "replay", "records"]


@dataclass(frozen=True, slots=True)
class StepState:
    """State that a rollout policy bases a step's decision on; equal on every rank.

    Args:
        step: Number of finished optimizer steps.
        steps: Steps of the whole run.
        draw: Uniform random number in [0, 1), from the recipe's seed and the step.
        level: Level of an adaptive policy (``adapt``).
        kept: Number of stored rollouts.
    """

    step: int
    steps: int
    draw: float
    level: float = 0.0
    kept: int = 0

    @property
    def share(self) -> float:
        """Completed share of the run, from 0 to below 1."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One token to choose in each of B texts.

    Args:
        place: Number of tokens generated before this one.
        room: ``max_new_tokens``.
        share: Completed share of the run.
        student: Student's sampling distribution, (B, V): temperature, top_k and top_p applied.
        teacher: Teacher's sampling distribution; None if the policy does not need it.
        draw: Samples a token from each row of (B, V) probabilities, with the random numbers of the
            text, this position, and the given index (0 or 1): use each index once.
    """

    place: int
    room: int
    share: float
    student: Tensor
    teacher: Tensor | None
    draw: Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Chosen tokens, (B,); their sampling probabilities; whether the student sampled them."""

    tokens: Tensor
    chances: Tensor
    own: Tensor


@dataclass(frozen=True, slots=True)
class CompletionScore:
    """A scorer's result for one completion; higher scores are better, a reason rejects it."""

    score: float = 0.0
    reason: str = ""
