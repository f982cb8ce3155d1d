"""Build a tree of summaries over an index (RAPTOR)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.rag.jobs.inputs import IndexInput, is_path
from stillroom.recipes import Recipe, Reference

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["JOB_KIND", "SummaryTreeRecipe", "estimate", "run"]


class SummaryTreeRecipe(IndexInput, Recipe):
    """Recipe that builds a tree of summaries over an index, or updates the one at its place."""

    kind: Literal["rag.summary_tree"] = Field(
        default="rag.summary_tree", description="build a summary tree"
    )
    model: Reference | None = Field(
        default=None,
        description="text model that writes summaries; without one they are sentences of the "
        "documents",
    )
    max_cluster_size: int = Field(
        default=8, ge=2, le=100, description="maximum texts in one summary"
    )
    neighbors: int = Field(
        default=8, ge=1, le=1000, description="number of nearest neighbors that a text is linked to"
    )
    max_layers: int = Field(default=5, ge=1, le=20, description="maximum number of layers")

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the tree, apart from the index and the model."""
        return {
            "max_cluster_size": self.max_cluster_size,
            "neighbors": self.neighbors,
            "max_layers": self.max_layers,
            **self.describe_reader(),
        }


def run(recipe: SummaryTreeRecipe, job: Job, *, model: TextModel | None = None) -> Artifact:
    """Build the tree; see ``stillroom.rag.graph.tree_job.build_tree``."""
    from stillroom.rag.graph.tree_job import build_tree

    return build_tree(recipe, job, model=model)


def estimate(recipe: SummaryTreeRecipe) -> Estimate:
    """Estimate the cost from the size of the index."""
    if not is_path(recipe.index):
        return Estimate()
    from stillroom.rag.graph.job import estimate_build

    calls = 2 / recipe.max_cluster_size if recipe.model is not None else 0
    return estimate_build(recipe, calls_per_passage=calls)


JOB_KIND = JobKind(recipe=SummaryTreeRecipe, run=run, estimate=estimate)
