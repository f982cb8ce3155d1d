"""Measure retrieval on judged queries, with intervals and paired differences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.rag.interfaces import DEFAULT_RETRIEVER
from stillroom.rag.jobs.inputs import IndexInput, JudgedQueries, is_path
from stillroom.recipes import DISTINCT, Recipe, Reference

__all__ = ["DEFAULT_MEASURES", "JOB_KIND", "RetrievalEvaluationRecipe", "estimate", "run"]

DEFAULT_MEASURES = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map", "success@5")


class RetrievalEvaluationRecipe(JudgedQueries, IndexInput, Recipe):
    """Recipe that searches an index for judged queries and compares retrieval pipelines."""

    kind: Literal["rag.retrieval_evaluation"] = Field(
        default="rag.retrieval_evaluation", description="measure retrieval"
    )
    pipelines: Annotated[list[str], DISTINCT] = Field(
        default=[DEFAULT_RETRIEVER, "hybrid", "keyword", "dense"],
        min_length=1,
        description="[TRANSFORM>]RETRIEVER[+RERANKER]; the first is the baseline",
    )
    measures: Annotated[list[str], DISTINCT] = Field(
        default=list(DEFAULT_MEASURES), min_length=1, description="measures; the first one ranks"
    )
    depth: int = Field(default=100, ge=1, le=1000, description="number of ranks that are judged")
    k: int = Field(
        default=10,
        ge=1,
        description="number of hits shown to a reader; relevant ones below are missed",
    )
    model: Reference | None = Field(
        default=None, description="text model for query transforms and rerankers"
    )


def run(recipe: RetrievalEvaluationRecipe, job: Job) -> Artifact:
    """Evaluate; see ``stillroom.rag.evaluation.retrieval_job.evaluate_retrieval``."""
    from stillroom.rag.evaluation.retrieval_job import evaluate_retrieval

    return evaluate_retrieval(recipe, job)


def estimate(recipe: RetrievalEvaluationRecipe) -> Estimate:
    """Estimate the time of the searches; checks pipelines, measures and judgments."""
    if not is_path(recipe.queries, recipe.qrels):
        return Estimate()
    from stillroom.rag.evaluation.retrieval_job import estimate_retrieval

    return estimate_retrieval(recipe)


JOB_KIND = JobKind(recipe=RetrievalEvaluationRecipe, run=run, estimate=estimate)
