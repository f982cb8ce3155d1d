"""Make a smaller student from a teacher's own layers, heads and channels, without training it.

Layer dropping (Men et al. 2024, arXiv:2403.03853) and width pruning (Muralidharan et al. 2024,
arXiv:2407.14679). Train the student with any kind whose ``student`` is the output.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.distill.settings import PruneSettings
from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind, defer
from stillroom.jobs.replay import JournalReplayer
from stillroom.recipes import Recipe, Reference

__all__ = ["JOB_KIND", "PruneRecipe", "estimate"]


class PruneRecipe(Recipe):
    """Make a smaller student from a teacher's own layers, heads and channels."""

    kind: Literal["distill.prune"] = Field(default="distill.prune", description="job kind")
    teacher: Reference = Field(
        examples=["path/to/teacher"], description="checkpoint of the teacher"
    )
    records: Reference = Field(description="calibration records: an artifact or file")
    student: PruneSettings = Field(
        default_factory=PruneSettings, description="sizes, and how the kept parts are selected"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="maximum tokens of a record; longer ones are truncated"
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads; 0 uses every core")


def estimate(recipe: PruneRecipe) -> Estimate:
    """Estimate memory, disk and time of the job, from names, shapes and sizes of files.

    Raises:
        CheckpointError: If the architecture of the teacher is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
    """
    from stillroom.distill.preflight.resources import estimate_pruning

    return estimate_pruning(
        recipe.teacher, recipe.records, recipe.student, max_tokens=recipe.max_tokens
    )


JOB_KIND = JobKind(
    PruneRecipe,
    defer("stillroom.distill.pruning.student:prune_teacher"),
    estimate,
    replayer=JournalReplayer(),
)
