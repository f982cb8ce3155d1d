"""Train a claim checker on edits planted in the sentences of an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import Estimate
from stillroom.recipes import DISTINCT, Recipe, Reference

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "CheckerRecipe", "estimate", "run"]

_SECONDS_PER_CLAIM = 5e-3
_BYTES_PER_CLAIM = 20_000


class CheckerRecipe(Recipe):
    """Train a checker that tells whether a passage supports a claim."""

    kind: Literal["rag.checker"] = Field(default="rag.checker", description="train a claim checker")
    index: Reference = Field(description="index artifact of the documents, in English")
    claims: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        default=(),
        examples=[["path/to/claims.jsonl"]],
        description="judged claims, as JSON lines of claim, passage and supported (true or false)",
    )
    judged_weight: float = Field(
        default=10.0, gt=0, le=1000, description="weight of a judged claim, of a planted one 1"
    )
    sentences: int = Field(
        default=1,
        ge=1,
        le=50,
        description="sentences of a passage from which a true and a wrong claim each are made",
    )
    max_claims: int = Field(default=8000, ge=20, description="maximum number of planted claims")
    precision: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="share of true claims among the supported ones that the threshold reaches, on "
        "documents that were not fitted to",
    )


def run(recipe: CheckerRecipe, job: Job) -> Artifact:
    """Plant edits, fit a checker to them and to judged claims, and write it.

    Raises:
        DataError: If too few claims can be made, or a line of ``claims`` is none.
        Cancelled: If cancellation was requested.
    """
    from stillroom.rag.claim_checking.training_run import train_checker

    return train_checker(recipe, job)


def estimate(recipe: CheckerRecipe) -> Estimate:
    """Estimate memory and time from the number of claims."""
    return Estimate(
        memory_bytes=300_000_000 + recipe.max_claims * _BYTES_PER_CLAIM,
        disk_bytes=1_000_000,
        seconds=recipe.max_claims * _SECONDS_PER_CLAIM,
        memory_knob="lower max_claims",
        disk_knob="",
        basis=f"{recipe.max_claims} planted claims",
    )


JOB_KIND = JobKind(recipe=CheckerRecipe, run=run, estimate=estimate)
