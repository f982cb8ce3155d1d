"""Tune the fusion of keyword and dense scores on judged queries, with cross-validation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.rag.jobs.inputs import IndexInput, JudgedQueries, is_path
from stillroom.recipes import Recipe

__all__ = ["JOB_KIND", "FusionTuningRecipe", "estimate", "run"]


class FusionTuningRecipe(JudgedQueries, IndexInput, Recipe):
    """Recipe that chooses on judged queries how keyword and dense results are fused."""

    kind: Literal["rag.fusion_tuning"] = Field(
        default="rag.fusion_tuning", description="tune the fusion"
    )
    pipelines: list[str] = Field(
        default=[],
        description="candidates, hybrid or convex with settings, the default first; none tries 50 "
        "settings of both",
    )
    measure: str = Field(default="ndcg@10", description="measure to maximize")
    folds: int = Field(default=5, ge=2, le=100, description="number of cross-validation folds")


def run(recipe: FusionTuningRecipe, job: Job) -> Artifact:
    """Tune; see ``stillroom.rag.evaluation.tuning.tune_fusion``."""
    from stillroom.rag.evaluation.tuning import tune_fusion

    return tune_fusion(recipe, job)


def estimate(recipe: FusionTuningRecipe) -> Estimate:
    """Estimate the time of the searches; checks candidates, measure and judgments."""
    if not is_path(recipe.queries, recipe.qrels):
        return Estimate()
    from stillroom.rag.evaluation.tuning import estimate_tuning

    return estimate_tuning(recipe)


JOB_KIND = JobKind(recipe=FusionTuningRecipe, run=run, estimate=estimate)
