"""Compare generations of data with the first, human one, and warn of collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillroom.errors import RecipeError
from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind, defer
from stillroom.jobs.replay import JournalReplayer
from stillroom.objects import resolve_local
from stillroom.recipes import DISTINCT, Recipe, Reference, Settings
from stillroom.synth.seeds import count_bytes

__all__ = ["JOB_KIND", "DiversityRecipe", "PerplexitySettings", "estimate"]

_BYTES_PER_SECOND = 2e5


class PerplexitySettings(Settings):
    """Perplexity of human text under the student of each generation."""

    students: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=2, description="checkpoints of students, one for each generation, in order"
    )
    human: Reference = Field(description="human records that no student was trained on")


class DiversityRecipe(Recipe):
    """Compare generations of data with the first, human one, and warn of collapse."""

    kind: Literal["synth.diversity"] = Field(
        default="synth.diversity", description="compare the diversity of generations of data"
    )
    generations: tuple[Reference, ...] = Field(
        min_length=2, description="files or artifacts of records, the human reference first"
    )
    embedder: Reference | None = Field(None, description="also compare meanings with this embedder")
    perplexity: PerplexitySettings | None = Field(
        None, description="also compare the perplexity of human text under students"
    )
    tolerance: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the reference's value that may be lost without a warning",
    )
    sample_words: int | None = Field(
        None, ge=1, description="words of a sample; by default half of the smallest generation"
    )

    @property
    def paths(self) -> tuple[Path, ...]:
        """Local paths of the generations."""
        return tuple(map(resolve_local, self.generations))

    @model_validator(mode="after")
    def _check_students(self) -> Self:
        """Check that there are as many students as generations."""
        students = self.perplexity.students if self.perplexity is not None else self.generations
        if len(students) != len(self.generations):
            raise RecipeError(
                f"{len(students)} students for {len(self.generations)} generations",
                code="synth.students",
                where="perplexity.students",
                expected="one checkpoint for each generation",
                next="name a student for each generation, in order",
            )
        return self


def estimate(recipe: DiversityRecipe) -> Estimate:
    """Estimate memory, disk and time from the size of the files."""
    size = count_bytes(recipe.generations)
    return Estimate(
        memory_bytes=int(size * 10 + 500_000_000),
        disk_bytes=10_000_000,
        seconds=size / _BYTES_PER_SECOND,
        memory_knob="compare smaller samples",
        disk_knob="compare smaller samples",
        basis=f"{size / 1e6:.1f} MB of records",
    )


JOB_KIND = JobKind(
    DiversityRecipe,
    defer("stillroom.synth.experiments.diversity_monitor:monitor_diversity"),
    estimate,
    replayer=JournalReplayer(),
)
