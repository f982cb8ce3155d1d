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
    """What one layer makes of one record: queries (H, T, d), keys (K, T, d), values (K, T, d).

    Attention's scores are ``scale * queries @ keys.T``, squashed to +-``cap`` where that is not 0.
    ``values`` is empty where queries and keys are those after rotary embeddings.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float = 1.0
    cap: float = 0.0


TextSource = Literal["student", "teacher", "replay", "records"]


@dataclass(frozen=True, slots=True)
class StepState:
    """What a policy decides a step by; the same on every rank.

    Args:
        step: Optimizer steps done before.
        steps: Of the whole run.
        draw: A number in [0, 1) drawn from the recipe's seed and the step.
        level: What an adaptive policy has come to (``adapt``).
        kept: Rollouts that can be learned from again.
    """

    step: int
    steps: int
    draw: float
    level: float = 0.0
    kept: int = 0

    @property
    def share(self) -> float:
        """How much of the run is over, from 0 to below 1."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One token to be chosen in each of B texts.

    Args:
        place: Tokens of the rollouts written before this one.
        room: ``max_new_tokens``.
        share: How much of the run is over.
        student: What the student would draw from, (B, V): temperature, top_k and top_p applied.
        teacher: The teacher's likewise; None where the policy did not ask for it.
        draw: Draws a token from each row of (B, V) probabilities, with the numbers that belong to
            the text, this place, and the number given (0 or 1): use each once.
    """

    place: int
    room: int
    share: float
    student: Tensor
    teacher: Tensor | None
    draw: Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The tokens chosen, (B,); how likely each was to be drawn; whether the student wrote it."""

    tokens: Tensor
    chances: Tensor
    own: Tensor


@dataclass(frozen=True, slots=True)
class CompletionScore:
    """What a verifier says of one completion; higher scores are better, a reason rejects it."""

    score: float = 0.0
    reason: str = ""
