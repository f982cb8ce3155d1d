"""Merge several checkpoints into one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.merge.jobs.recipe import MERGE_REPLAYER, MergeRecipe
from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "MergeWeightsRecipe", "estimate", "run"]


class MergeWeightsRecipe(MergeRecipe):
    """Merge several checkpoints into one."""

    kind: Literal["merge.weights"] = Field(
        default="merge.weights", description="merge several checkpoints into one"
    )


def run(recipe: MergeWeightsRecipe, job: Job) -> Artifact:
    """Merge and publish the checkpoint; raises as ``publish``."""
    from stillroom.merge.jobs.publication import Outcome, open_limited, publish

    recipe, merge = open_limited(recipe, job)
    return publish(recipe, merge, Outcome(merge), job)


def estimate(recipe: MergeWeightsRecipe) -> Estimate:
    """Estimate the cost of a merge from headers; missing sources count as zero."""
    from stillroom.merge.jobs.publication import estimate_merge
    from stillroom.merge.planning.inputs import limit_run_checkpoints

    return estimate_merge(recipe, lambda: limit_run_checkpoints(recipe).open())


JOB_KIND = JobKind(recipe=MergeWeightsRecipe, run=run, estimate=estimate, replayer=MERGE_REPLAYER)
