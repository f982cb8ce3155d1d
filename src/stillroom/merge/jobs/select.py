"""Merge checkpoints, and keep the best of the merge, its variants and its parents on records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.errors import RecipeError
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.merge.jobs.recipe import SELECTION_REPLAYER, MergeRecipe
from stillroom.merge.settings import SelectionSettings
from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "MergeSelectRecipe", "estimate", "run"]


class MergeSelectRecipe(MergeRecipe):
    """Merge checkpoints, and keep the best of the merge, its variants and its parents."""

    kind: Literal["merge.select"] = Field(
        default="merge.select", description="merge checkpoints, and keep the best candidate"
    )
    select: SelectionSettings = Field(
        description="score candidates on held-out records and keep the best"
    )
    on_too_few: Literal["refuse", "continue"] = Field(
        "refuse",
        description="if a run has fewer checkpoints than last_checkpoints, or fewer than 2 records "
        "can be scored: refuse; or continue with the available checkpoints, or with the first "
        "model unchanged, with a warning",
    )

    @model_validator(mode="after")
    def _check_interpolations(self) -> MergeSelectRecipe:
        if self.base_model is None and self.select.interpolations:
            raise RecipeError(
                "select.interpolations lie between a base and the merge, but the recipe has no "
                "base",
                code="merge.base",
                where="base_model",
                expected="the checkpoint that the models were fine-tuned from",
                next="add it as 'base_model', or omit select.interpolations",
            )
        return self


def run(recipe: MergeSelectRecipe, job: Job) -> Artifact:
    """Select among candidate merges and their parents, and publish the checkpoint.

    Raises as ``publish``.
    """
    from stillroom.merge.jobs.publication import Outcome, open_limited, publish
    from stillroom.merge.search.selection import format_selection, select_merge

    recipe, started = open_limited(recipe, job)
    merge, details = select_merge(recipe, started, job)
    outcome = Outcome(
        merge, details=details, card=format_selection(details), records=(recipe.select.records,)
    )
    return publish(recipe, started, outcome, job)


def estimate(recipe: MergeSelectRecipe) -> Estimate:
    """Estimate the cost of a merge and of scoring its candidates."""
    from stillroom.merge.jobs.publication import estimate_merge, estimate_scoring
    from stillroom.merge.search.selection import count_candidates

    merge = estimate_merge(recipe)
    return estimate_scoring(merge, "select", recipe.select, count_candidates(recipe))


JOB_KIND = JobKind(
    recipe=MergeSelectRecipe,
    run=run,
    estimate=estimate,
    extras=("models",),
    replayer=SELECTION_REPLAYER,
)
