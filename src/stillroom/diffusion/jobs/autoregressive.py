"""Train an autoregressive language model, the baseline of a diffusion model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
from stillroom.diffusion.settings import TextTrainingRecipe, declare_training

__all__ = ["JOB_KIND", "AutoregressiveRecipe", "derive_baseline_recipe"]


class AutoregressiveRecipe(TextTrainingRecipe):
    """Train an autoregressive language model, the baseline of a diffusion model."""

    kind: Literal["diffusion.autoregressive"] = Field(
        default="diffusion.autoregressive", description="train an autoregressive model"
    )


def derive_baseline_recipe(recipe: DiffusionTrainRecipe) -> AutoregressiveRecipe:
    """Return the recipe of the autoregressive baseline: same network, records, compute and seed.

    The number of steps is multiplied by the passes per step of the diffusion model: two for
    block-causal attention (noisy and clean copy), two for complementary masking.
    """
    fields = set(AutoregressiveRecipe.model_fields) - {"kind"}
    settings = recipe.model_dump(mode="json", include=fields)
    settings["validation"] = recipe.validation.model_dump(include={"records", "every"})
    settings["train"]["epochs"] *= recipe.passes_per_step
    if settings["train"]["steps"] is not None:
        settings["train"]["steps"] *= recipe.passes_per_step
    return AutoregressiveRecipe.model_validate(settings)


JOB_KIND = declare_training(AutoregressiveRecipe, "masked:NextTokenPrediction")
