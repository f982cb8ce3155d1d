"""Search the settings or the layers of a merge by scores on records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.errors import RecipeError
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.merge.jobs.recipe import SELECTION_REPLAYER, MergeRecipe
from stillroom.merge.search.space import find_space_problems
from stillroom.merge.settings import SearchSettings
from stillroom.provenance import Artifact
from stillroom.recipes import ENGINE, EngineChoice

__all__ = ["JOB_KIND", "MergeSearchRecipe", "estimate", "run"]


class MergeSearchRecipe(MergeRecipe):
    """Search the settings or the layers of a merge by scores on records."""

    kind: Literal["merge.search"] = Field(
        default="merge.search", description="search the settings or the layers of a merge"
    )
    engine: EngineChoice = ENGINE
    search: SearchSettings = Field(
        description="what is searched, the records and the objective, and the optimizer"
    )

    @property
    def changes_models(self) -> bool:
        """Whether tensors may be merged from other models than those listed."""
        return self.search.layer_path is not None or super().changes_models

    @model_validator(mode="after")
    def _check_space(self) -> MergeSearchRecipe:
        if problems := find_space_problems(self):
            raise RecipeError(problems)
        return self


def run(recipe: MergeSearchRecipe, job: Job) -> Artifact:
    """Search, and publish the best merge, or the best parent if no merge is better.

    Raises as ``publish``.
    """
    from stillroom.merge.jobs.publication import Outcome, open_limited, publish
    from stillroom.merge.search.run import format_search, search_merge, write_search_result

    recipe, started = open_limited(recipe, job)
    result = search_merge(recipe, started, job)
    outcome = Outcome(
        result.merge,
        recipe=result.recipe,
        sources=result.merge.sources if result.details["helped"] else None,
        details={"search": result.details},
        card=format_search(result.details),
        records=(recipe.search.records,),
        finish=lambda: write_search_result(result, job),
    )
    return publish(recipe, started, outcome, job)


def estimate(recipe: MergeSearchRecipe) -> Estimate:
    """Estimate the cost of a merge and of scoring its candidates."""
    from stillroom.merge.jobs.publication import estimate_merge, estimate_scoring

    merge = estimate_merge(recipe, by_size=recipe.search.layer_path is not None)
    count = recipe.search.count_scored()
    return estimate_scoring(merge, "search", recipe.search, count)


JOB_KIND = JobKind(
    recipe=MergeSearchRecipe,
    run=run,
    estimate=estimate,
    extras=("models",),
    replayer=SELECTION_REPLAYER,
)
