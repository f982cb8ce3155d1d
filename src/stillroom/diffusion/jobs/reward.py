"""Train a diffusion model on verified rewards of its own answers with diffu-GRPO.

Source: Zhao et al. 2025 (d1), arXiv:2504.12216; the algorithm is in
``stillroom.diffusion.training.rollouts``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.diffusion.settings import PolicyRecipe, declare_training, estimate_training
from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.jobs import Estimate

__all__ = ["JOB_KIND", "DiffusionRewardRecipe", "RolloutDecodeSettings", "estimate"]


class RolloutDecodeSettings(DecodeSettings):
    """Decoding settings of sampled answers, whose random seeds are those of the job."""

    max_new_tokens: int = Field(default=64, ge=1, description="maximum number of new tokens")
    temperature: float = Field(default=0.9, gt=0, description="sampling temperature")
    seed: ClassVar[int] = 0  # type: ignore[misc]


class DiffusionRewardRecipe(PolicyRecipe):
    """Train a diffusion model on verified rewards of its own answers with diffu-GRPO."""

    kind: Literal["diffusion.reward"] = Field(
        default="diffusion.reward", description="train on rewards of a verifier"
    )
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="verifier of answers; correct ones get 1"
    )
    partial_credit: bool = Field(
        default=True, description="reward partially correct answers, if the verifier scores them"
    )
    num_generations: int = Field(default=8, ge=2, le=512, description="answers per prompt")
    num_iterations: int = Field(
        default=2, ge=1, le=64, description="optimizer steps per batch of answers; 1 is on-policy"
    )
    p_mask_prompt: float = Field(
        default=0.15, ge=0, lt=1, description="masking probability of prompt tokens"
    )
    epsilon: float = Field(
        default=0.2, gt=0, lt=1, description="clipping range of the ratio around 1"
    )
    beta: float = Field(
        default=0.04, ge=0, description="weight of the KL penalty to the reference; 0 disables it"
    )
    scale_rewards: bool = Field(
        default=False, description="divide advantages by the group's standard deviation, as GRPO"
    )
    decode: RolloutDecodeSettings = Field(
        default_factory=RolloutDecodeSettings, description="decoding settings of the answers"
    )


def estimate(recipe: DiffusionRewardRecipe) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M.

    Each answer takes a training pass, a forward pass before it (two with a reference), and
    sampling at about one forward pass per token.
    """
    sampling = recipe.decode.max_new_tokens / 3 / recipe.num_iterations
    passes = recipe.num_generations * (1 + (1 + (recipe.beta > 0)) / 3 + sampling)
    return estimate_training(
        recipe, passes=passes, steps_per_batch=recipe.num_iterations, has_reference=True
    )


JOB_KIND = declare_training(DiffusionRewardRecipe, "rollouts:RewardOptimization", estimate)
