"""Measure decoding settings of a diffusion model, and choose the fastest good one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stillroom.diffusion.settings import estimate_decoding
from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind, defer
from stillroom.recipes import Recipe, Reference

__all__ = ["JOB_KIND", "DecodingTuneRecipe", "GridValue", "estimate"]

GridValue = bool | int | float | str | None
"""Value of a decoding setting."""


class DecodingTuneRecipe(Recipe):
    """Measure decoding settings of a diffusion model, and choose the fastest good one."""

    kind: Literal["diffusion.tune"] = Field(
        default="diffusion.tune", description="tune decoding settings"
    )
    model: Reference = Field(description="diffusion checkpoint")
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="diffusion metadata that its config does not record"
    )
    records: Reference = Field(description="records artifact or file with reference answers")
    split: str = Field(
        default="", description="use only records with this fields.split; empty uses all"
    )
    max_records: int = Field(default=32, ge=1, description="maximum number of records, a sample")
    grid: dict[str, Annotated[tuple[GridValue, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="values by dotted name of a decoding setting, as {commit.threshold: [0.8, "
        "0.9]}; replaces or extends the default grid of threshold, block length, cache and order",
    )
    decode: dict[str, Any] = Field(
        default_factory=dict, description="decoding settings that all share, as {temperature: 0.5}"
    )
    metric: Literal["f1", "exact", "same"] = Field(
        default="f1",
        description="quality against the answer: token F1, equal after normalization, or the same",
    )
    max_loss: float = Field(
        default=0.01, ge=0, le=1, description="acceptable loss of quality against one token a step"
    )
    name: str = Field(default="tuned", min_length=1, description="name of the preset")


def estimate(recipe: DecodingTuneRecipe) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M."""
    return estimate_decoding(recipe.model, recipe.grid, recipe.max_records)


JOB_KIND = JobKind(
    DecodingTuneRecipe, defer("stillroom.diffusion.evaluation.sweep:sweep_decoding"), estimate
)
