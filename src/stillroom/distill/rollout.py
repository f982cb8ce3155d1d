"""``RolloutPolicy``: who writes the text of an optimizer step, token by token.

A policy decides once a step, from numbers that are the same on all ranks, whether the step learns
from fresh text, from text kept before, or from the records; and it chooses each token of fresh
text from the distributions of student and teacher. Knows neither models nor caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ROLLOUTS", "Choice", "Moment", "RolloutPolicy", "TextFrom", "Turn"]

TextFrom = Literal["student", "teacher", "replay", "records"]


@dataclass(frozen=True, slots=True)
class Moment:
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
class Turn:
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
class Choice:
    """The tokens chosen, (B,); how likely each was to be drawn; whether the student wrote it."""

    tokens: Tensor
    chances: Tensor
    own: Tensor


class RolloutPolicy(Method):
    """Where a step's text comes from, and how it is drawn.

    Text is drawn with these settings and never with those of a model's generation_config: another
    distribution than the model's own would make the loss one of text that the student would not
    write. ``draws_from_student`` is False where tokens that count as the student's are not drawn
    from its own distribution, so that no policy gradient can be taken on them.
    """

    draws_from_student: ClassVar[bool] = True
    learns_of_loss: ClassVar[bool] = False

    temperature: float = Field(default=1.0, gt=0, description="of the draws; the loss has its own")
    top_k: int = Field(default=0, ge=0, description="draw from so many likeliest tokens; 0 all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this mass; 1 all"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="most tokens of a rollout")
    opening_tokens: int = Field(
        default=16,
        ge=1,
        description="a record that is plain text prompts with so many of its first tokens",
    )
    rows: int = Field(
        default=8,
        ge=1,
        le=512,
        description="texts written side by side; another number may change last bits",
    )
    reuse: int = Field(
        default=1, ge=1, description="optimizer steps in a row that learn from the same rollouts"
    )
    warm_up: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run that learns from records alone first"
    )
    beside_records: bool = Field(
        default=False,
        description="steps with fresh or kept text learn from the records of the prompts too",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that the teacher must run in every step."""
        return {"targets.mode": "live"}

    @property
    def start_level(self) -> float:
        """What an adaptive policy begins with."""
        return 0.0

    @property
    def validated(self) -> int:
        """How many held-out records a policy validates on."""
        return 0

    @property
    def learns_from_others(self) -> bool:
        """Whether some steps learn only from text that the student did not write."""
        return True

    @property
    def learns_from_records(self) -> bool:
        """Whether any step may learn from the records, or is judged by them."""
        return self.learns_from_others or self.beside_records or self.learns_of_loss

    @property
    def may_need_teacher(self) -> bool:
        """Whether the teacher writes, or is asked while the student does."""
        return False

    @property
    def written_share(self) -> float:
        """Share of the steps that begin with fresh text, at most."""
        return (1 - self.warm_up) * float(getattr(self, "student_share", 1.0))

    @property
    def capacity(self) -> int:
        """How many rollouts are kept to be learned from again."""
        return 0

    def decide(self, moment: Moment) -> TextFrom:
        """Return where this step's text comes from."""
        return "student"

    def wants_teacher(self, place: int, share: float) -> bool:
        """Whether ``choose`` needs the teacher's distribution at this place of a rollout."""
        return False

    def choose(self, turn: Turn) -> Choice:
        """Choose the next token of each text; here the student writes alone."""
        import torch

        tokens = turn.draw(turn.student, 0)
        chances = turn.student.gather(-1, tokens[:, None]).squeeze(-1)
        return Choice(tokens, chances, torch.ones_like(tokens, dtype=torch.bool))

    def validates(self, step: int, steps: int) -> bool:
        """Whether the loss on held-out records is measured before this step."""
        return False

    def adapt(self, level: float, before: float | None, loss: float) -> float:
        """Return the new level, given the loss on held-out records, and the one before."""
        return level


ROLLOUTS: Seam[RolloutPolicy] = Seam("stillroom.distill.rollouts", RolloutPolicy)
