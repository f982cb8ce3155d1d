"""diffu-GRPO: group-relative policy optimization with one-step likelihood estimates.

Source: Zhao et al. 2025 (d1), arXiv:2504.12216, section 3 and algorithm 1: several answers per
prompt, rewards less the group's mean as advantages, clipped ratios, and a KL penalty per token.
Log-probabilities come from one pass with the whole answer and a part of the prompt masked, drawn
anew in every update, under the same masks for the policy, the sampling policy and the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import DiffusionObjective, ObjectiveContext, TokenizedDataset
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import DataError
from stillroom.evaluate.interfaces import VERIFIERS, Verifier

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.training.data import CorruptedBatch
    from stillroom.records import Record
    from stillroom.train.data import BatchSource

__all__ = ["DiffuGrpo"]


class DiffuGrpo(DiffusionObjective):
    """Group-relative policy optimization of verified answers."""

    paper: ClassVar[str] = "arXiv:2504.12216"
    needs_model: ClassVar[bool] = True

    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="verifier of answers; correct ones get 1"
    )
    graded: bool = Field(
        default=True, description="reward partially correct answers, if the verifier scores them"
    )
    group: int = Field(default=8, ge=2, le=512, description="answers per prompt")
    updates: int = Field(
        default=2, ge=1, le=64, description="optimizer steps per batch of answers; 1 is on-policy"
    )
    prompt_mask: float = Field(
        default=0.15, ge=0, lt=1, description="masking probability of prompt tokens"
    )
    clip: float = Field(default=0.2, gt=0, lt=1, description="clipping range of the ratio around 1")
    kl_weight: float = Field(
        default=0.04, ge=0, description="weight of the KL penalty to the reference; 0 disables it"
    )
    scale_rewards: bool = Field(
        default=False, description="divide advantages by the group's standard deviation, as GRPO"
    )
    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(max_new_tokens=64, temperature=0.9),
        description="decoding settings of the answers",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return a placeholder for the initial checkpoint."""
        return {"start": "path/to/checkpoint"}

    @property
    @override
    def reads(self) -> float:
        """Training, a pass before it, and sampling at about one forward pass per token."""
        written = self.decode.max_new_tokens / 3 / self.updates
        return self.group * (1 + (1 + (self.kl_weight > 0)) / 3 + written)

    @property
    @override
    def steps_per_batch(self) -> int:
        """Number of updates on the same answers."""
        return self.updates

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return each answer's reward less the mean of its group, (G, n).

        Args:
            rewards: Rewards of the answers to each prompt, (G, n).
        """
        centered = rewards - rewards.mean(-1, keepdim=True)
        if not self.scale_rewards:
            return centered
        return centered / (rewards.std(-1, keepdim=True, correction=0) + 1e-4)

    def loss(self, now: Tensor, wrote: Tensor, reference: Tensor, advantage: Tensor) -> Tensor:
        """Return the loss of each token, (N,).

        Args:
            now: Log-probabilities of the policy, (N,).
            wrote: Log-probabilities of the sampling policy, (N,).
            reference: Log-probabilities of the reference, (N,); unused if kl_weight is 0.
            advantage: Advantage of each token's answer, (N,).
        """
        ratio = (now - wrote).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = (ratio * advantage).minimum(clipped * advantage)
        if not self.kl_weight:
            return -gain
        apart = reference - now
        return self.kl_weight * (apart.exp() - apart - 1) - gain

    @override
    def encode(
        self,
        recipe: DiffusionRecipe,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        from stillroom.diffusion.training.rollouts import tokenize_prompts

        return tokenize_prompts(
            model.tokenizer,
            records,
            self.verifier,
            max_tokens=min(recipe.max_tokens, model.context_length - self.decode.max_new_tokens),
            on_done=on_done,
        )

    @override
    def begin(self, course: ObjectiveContext) -> BatchSource[CorruptedBatch]:
        from stillroom.diffusion.training.rollouts import RolloutDataSource

        return RolloutDataSource(self, course)

    @override
    def miss(self, recipe: DiffusionRecipe, records: int) -> DataError:
        needs = " or ".join(f"fields.{name}" for name in self.verifier.needs) or "nothing else"
        return DataError(
            f"none of {records} records is a task for verifier '{self.verifier.method_name()}'",
            code="diffusion.no-tasks",
            where="records",
            expected=f"a user message within {recipe.max_tokens} tokens, and {needs}",
            next="choose another objective.verifier, or raise max_tokens",
        )

    @override
    def measure(
        self, recipe: DiffusionRecipe, model: DiffusionModel, records: Sequence[Record]
    ) -> dict[str, float]:
        from stillroom.diffusion.training.rollouts import evaluate_prompts

        return evaluate_prompts(self, model, self.encode(recipe, model, records).items)
