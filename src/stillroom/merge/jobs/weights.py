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
    from stillroom.merge.jobs.publication import publish_merge

    return publish_merge(recipe, job)


def estimate(recipe: MergeWeightsRecipe) -> Estimate:
    """Estimate the cost of a merge from headers; missing sources count as zero."""
    from stillroom.merge.jobs.publication import estimate_merge

    return estimate_merge(recipe)


JOB_KIND = JobKind(recipe=MergeWeightsRecipe, run=run, estimate=estimate, replayer=MERGE_REPLAYER)
