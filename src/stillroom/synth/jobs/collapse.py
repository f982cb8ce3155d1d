"""Train students on outputs of students over generations, and report the degradation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind
from stillroom.recipes import DISTINCT, Recipe, Reference
from stillroom.synth.selection import MIX_RULES, MixRule
from stillroom.synth.settings import TRAINING_FLOPS_PER_SECOND, FreshStudent, Student

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "CollapseRecipe", "estimate", "run"]


class CollapseRecipe(Recipe):
    """Train students on outputs of students over generations, and measure the degradation."""

    kind: Literal["synth.collapse"] = Field(
        default="synth.collapse", description="measure model collapse with small students"
    )
    human: Reference = Field(
        description="human text: a file of records or of text, an index, or a recipe of kind "
        "synth.records, whose passages are used"
    )
    rules: Annotated[tuple[MixRule, ...], DISTINCT] = Field(
        MIX_RULES, min_length=1, description="training data of a generation, one study each"
    )
    generations: int = Field(5, ge=1, description="number of generations after the human one")
    num_seeds: int = Field(3, ge=1, description="number of repetitions; 3 or more for an interval")
    num_records: int = Field(
        400, ge=8, description="maximum human training records (pieces, for plain text)"
    )
    num_held_out: int = Field(200, ge=8, description="maximum human test records")
    human_share: float = Field(
        0.0, ge=0, lt=1, description="minimum share of human records in every generation"
    )
    student: Student = Field(
        default_factory=FreshStudent, description="the students, and how they are trained"
    )
    embedder: Reference | None = Field(
        None, description="also measure semantic spread and coverage with this embedder"
    )
    tolerance: float = Field(
        0.05, ge=0, le=1, description="share of a metric that may be lost without a warning"
    )

    @property
    def num_students(self) -> int:
        """Number of students."""
        return self.num_seeds * (1 + len(self.rules) * self.generations)


def run(recipe: CollapseRecipe, job: Job) -> Artifact:
    """Train the students of all generations and report how they degrade.

    Raises as ``run_collapse_study``.
    """
    from stillroom.synth.experiments.model_collapse import run_collapse_study

    artifact, _, _ = run_collapse_study(recipe, job)
    return artifact


def estimate(recipe: CollapseRecipe) -> Estimate:
    """Estimate memory, disk and time from the size of the student."""
    settings, units = recipe.student, recipe.num_students
    parameters = settings.count_parameters()
    steps = settings.train.count_steps(recipe.num_records)
    if settings.train.steps is None and "accumulate" in recipe.rules:
        # relative to the first generation
        growth = sum(range(2, recipe.generations + 2)) / recipe.generations
        steps = round(steps * (1 + (growth - 1) / len(recipe.rules)))
    trained_tokens = steps * settings.train.batch_size * settings.max_tokens
    # Training takes six multiply-adds per parameter and token; generation is slower than its two.
    generated_tokens = recipe.num_records * settings.max_tokens
    flops = parameters * (6.0 * trained_tokens + 20.0 * generated_tokens)
    student_seconds = flops / TRAINING_FLOPS_PER_SECOND
    embedded = 0.02 * recipe.num_held_out * units if recipe.embedder else 0.0
    return Estimate(
        memory_bytes=int(parameters * 20 + 800_000_000),
        disk_bytes=int(units * recipe.num_records * settings.max_tokens * 8 + parameters * 16),
        seconds=units * (student_seconds + 3.0) + embedded,
        memory_knob="use a smaller student",
        disk_knob="use fewer records or generations",
        basis=f"{units} students of {parameters / 1e6:.2f} M parameters, {steps} steps "
        "each in the mean",
    )


JOB_KIND = JobKind(CollapseRecipe, run, estimate)
