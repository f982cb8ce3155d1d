"""Build a knowledge graph of an index: entities, relations, communities and their reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.rag.interfaces import EXTRACTORS, EntityExtractor
from stillroom.rag.jobs.inputs import IndexInput, is_path
from stillroom.recipes import Recipe, Reference, Settings

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["JOB_KIND", "GraphRecipe", "GraphWriter", "estimate", "run"]


class GraphWriter(Settings):
    """Text model of a graph: of the extractor, of descriptions and of reports."""

    model: Reference = Field(description="text model: a checkpoint, a .gguf file or an endpoint")
    reports: bool = Field(
        default=True,
        description="write the reports of communities; false selects sentences for them",
    )


class GraphRecipe(IndexInput, Recipe):
    """Recipe that builds a knowledge graph of an index, or updates the one at its place."""

    kind: Literal["rag.graph"] = Field(default="rag.graph", description="build a knowledge graph")
    extractor: Annotated[EntityExtractor, EXTRACTORS.choice("noun_phrases")] = Field(
        default="noun_phrases", validate_default=True, description="method that finds entities"
    )
    writer: GraphWriter | None = Field(
        default=None,
        description="model that describes entities and writes reports; without one, both are "
        "sentences of the documents",
    )
    max_cluster_size: int = Field(
        default=10, ge=2, description="maximum number of entities of a community (Leiden)"
    )
    resolution: float = Field(
        default=1.0, gt=0, description="resolution of communities (Leiden); higher values give more"
    )

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.extractor.needs_model and self.writer is None:
            name = self.extractor.method_name()
            raise ValueError(f"the extractor {name} needs a model: set writer.model")
        return self

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the graph, apart from the index and the model."""
        return {
            "extractor": self.extractor.model_dump(mode="json"),
            "reports": self.writer is None or self.writer.reports,
            "max_cluster_size": self.max_cluster_size,
            "resolution": self.resolution,
            "seed": self.seed,
            **self.describe_reader(),
        }


def run(recipe: GraphRecipe, job: Job, *, model: TextModel | None = None) -> Artifact:
    """Build the graph; see ``stillroom.rag.graph.job.build_graph``."""
    from stillroom.rag.graph.job import build_graph

    return build_graph(recipe, job, model=model)


def estimate(recipe: GraphRecipe) -> Estimate:
    """Estimate the cost from the size of the index."""
    if not is_path(recipe.index):
        return Estimate()
    from stillroom.rag.graph.job import estimate_build

    calls = max(1, recipe.extractor.calls_per_passage) if recipe.writer is not None else 0
    return estimate_build(recipe, calls_per_passage=calls)


JOB_KIND = JobKind(recipe=GraphRecipe, run=run, estimate=estimate)
