"""Train a diffusion model on preference pairs with VRPO.

Source: Zhu et al. 2025 (LLaDA 1.5), arXiv:2505.19223; the algorithm is in
``stillroom.diffusion.training.preferences``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.diffusion.settings import PolicyRecipe, declare_training, estimate_training
from stillroom.jobs import Estimate
from stillroom.recipes import Reference

__all__ = ["JOB_KIND", "DiffusionPreferenceRecipe", "estimate"]


class DiffusionPreferenceRecipe(PolicyRecipe):
    """Train a diffusion model on preference pairs with VRPO."""

    kind: Literal["diffusion.preference"] = Field(
        default="diffusion.preference", description="train on preference pairs"
    )
    records: Reference = Field(
        description="records artifact or file with fields.chosen and fields.rejected; those with "
        "fields.split 'held_out' are for validation"
    )
    beta: float = Field(default=0.1, gt=0, description="strength of the reference")
    num_times: int = Field(default=8, ge=1, le=1024, description="times per bound")
    masks_per_time: int = Field(
        default=1, ge=1, le=1024, description="masks per time; more times are better"
    )
    antithetic: bool = Field(
        default=True, description="evaluate the reference under the masks of the policy"
    )
    stratified: bool = Field(default=True, description="draw times by stratified sampling")
    fixed_mask_count: bool = Field(
        default=True,
        description="mask a fixed number of tokens per time; false: mask each independently",
    )


def estimate(recipe: DiffusionPreferenceRecipe) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M.

    Each sample of both answers takes two forward passes and one training pass.
    """
    samples = recipe.num_times * recipe.masks_per_time
    return estimate_training(recipe, passes=2 * samples * (1 + 2 / 3), has_reference=True)


JOB_KIND = declare_training(
    DiffusionPreferenceRecipe, "preferences:PreferenceOptimization", estimate
)
