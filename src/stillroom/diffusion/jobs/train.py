"""Train a masked diffusion language model, from scratch or from a checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.diffusion.interfaces import (
    ATTENTIONS,
    CORRUPTIONS,
    NOISE_SCHEDULES,
    Corruption,
    NoiseSchedule,
    TrainingAttention,
)
from stillroom.diffusion.settings import (
    MaskedValidationSettings,
    NoiseSettings,
    TextTrainingRecipe,
    declare_training,
    estimate_training,
)
from stillroom.jobs import Estimate

__all__ = ["JOB_KIND", "DiffusionTrainRecipe", "estimate"]


class DiffusionTrainRecipe(TextTrainingRecipe):
    """Train a masked diffusion language model, from scratch or from a checkpoint."""

    kind: Literal["diffusion.train"] = Field(
        default="diffusion.train", description="train a masked diffusion model"
    )
    attention: Annotated[TrainingAttention, ATTENTIONS.choice("full")] = Field(
        default_factory=lambda: ATTENTIONS.build("full"),
        description="which positions a token attends to",
    )
    logit_shift: bool | None = Field(
        default=None,
        description="whether a state predicts the next token; null: as in the initial checkpoint "
        "(autoregressive: yes; new network: no)",
    )
    corruption: Annotated[Corruption, CORRUPTIONS.choice("independent")] = Field(
        default_factory=lambda: CORRUPTIONS.build("independent"),
        description="corruption process of the training texts",
    )
    noise_schedule: Annotated[NoiseSchedule, NOISE_SCHEDULES.choice("linear")] = Field(
        default_factory=lambda: NOISE_SCHEDULES.build("linear"),
        description="masking ratio as a function of time",
    )
    noise: NoiseSettings = Field(default_factory=NoiseSettings, description="distribution of times")
    validation: MaskedValidationSettings = Field(
        default_factory=MaskedValidationSettings, description="metrics on held-out records"
    )

    @property
    def passes_per_step(self) -> int:
        """Number of passes over each text per optimizer step."""
        return self.attention.num_copies * self.corruption.num_copies


def estimate(recipe: DiffusionTrainRecipe) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M."""
    return estimate_training(recipe, passes=recipe.passes_per_step)


JOB_KIND = declare_training(DiffusionTrainRecipe, "masked:MaskedDenoising", estimate)
