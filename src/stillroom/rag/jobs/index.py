"""Build an index over a folder of documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.replay import JournalReplayer
from stillroom.jobs.segments import ReplayRequest, SegmentOutcome
from stillroom.provenance import Artifact
from stillroom.rag.index_settings import AUTO_EMBEDDER, IndexSettings
from stillroom.recipes import ENGINE, EngineChoice, Recipe

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["JOB_KIND", "IndexRecipe", "estimate", "run"]


class IndexRecipe(IndexSettings, Recipe):
    """Recipe that builds an index over a folder of documents."""

    kind: Literal["rag.index"] = Field(default="rag.index", description="build an index")
    engine: EngineChoice = ENGINE


def run(recipe: IndexRecipe, job: Job, *, embedder: Embedder | None = None) -> Artifact:
    """Build the index; see ``stillroom.rag.index.builder.build_index``."""
    from stillroom.rag.index.builder import build_index

    return build_index(recipe, job, embedder=embedder)


def estimate(recipe: IndexRecipe) -> Estimate:
    """Estimate the cost of the index from the size of the folder."""
    from stillroom.rag.index.builder import estimate_index

    return estimate_index(recipe)


class _IndexReplayer(JournalReplayer):
    """Replays indexes that were not changed after they were built."""

    def weigh(self, request: ReplayRequest, name: str, value: Mapping[str, Any]) -> float:
        """Return the size of a document in bytes; 0 if it is not here."""
        from stillroom.rag.index.replay import name_document

        folder = Path(cast("IndexRecipe", request.recipe).documents)
        path = folder / name.removeprefix(name_document(""))
        return float(path.stat().st_size) if path.is_file() else 0.0

    def find_open(self, request: ReplayRequest) -> str:
        store = cast("IndexRecipe", request.recipe).store.method_name()
        if store != "folder":
            return f"the index is in {store}, and building it again would write there"
        snapshot = request.artifact.details.get("snapshot")
        if snapshot != 1:
            return f"the index was updated in place (snapshot {snapshot}); build it again"
        return super().find_open(request)

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterator[SegmentOutcome]:
        """Build the index again, and compare its catalog row by row, too: what is read and served.

        The other files of the index are compared byte for byte (``compared``). Of embedders that
        may be chosen, the one then is taken: another one may be installed here.
        """
        from stillroom.rag.index.replay import compare_catalogs
        from stillroom.rag.ingestion.embedder_choice import find_chosen_embedder

        if cast("IndexRecipe", request.recipe).embedder == AUTO_EMBEDDER:
            chosen = {"embedder": find_chosen_embedder(request.artifact)}
            request = replace(request, recipe=request.recipe.model_copy(update=chosen))
        yield from super().replay(request, names)
        built = request.scratch / request.folder.name
        yield compare_catalogs(request.folder / "output", built / "output", request.restore_places)


def _list_embedders(recipe: IndexRecipe) -> list[str]:
    """Return the installed embedders that may be chosen."""
    from stillroom.rag.ingestion.embedder_choice import list_installed_embedders

    return list_installed_embedders() if recipe.embedder == AUTO_EMBEDDER else []


JOB_KIND = JobKind(
    recipe=IndexRecipe,
    run=run,
    estimate=estimate,
    surroundings=_list_embedders,
    replayer=_IndexReplayer(
        course=frozenset({"embedded", "parsed", "reused"}),
        reuses_output=True,
        compared=("output/segments/*", "output/snapshots/*"),
        phases=("index",),
        later_roles=frozenset({"metadata"}),
    ),
)
