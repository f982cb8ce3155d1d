"""Measure the value of groups of records by training small students on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.errors import count_noun
from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind
from stillroom.recipes import DISTINCT, Reference
from stillroom.synth.settings import (
    TRAINING_FLOPS_PER_SECOND,
    FreshStudent,
    RecordFilesRecipe,
    Student,
)

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "DataValueRecipe", "estimate", "run"]


class DataValueRecipe(RecordFilesRecipe):
    """Measure the value of groups of records by training small students on them."""

    kind: Literal["synth.data_value"] = Field(
        default="synth.data_value", description="measure the value of groups of records"
    )
    human: Reference = Field(
        description="human records to measure on; none may be used for training"
    )
    by: str = Field(
        "generator",
        description="grouping: generator, filter (needs dropped.jsonl), or the name of a field",
    )
    groups: Annotated[tuple[str, ...], DISTINCT] = Field(
        (), description="groups to compare, by default all; 'all filters' is one of the filters'"
    )
    num_seeds: int = Field(3, ge=1, description="number of seeds of each arm")
    num_records: int = Field(1000, ge=1, description="maximum training records of a student")
    num_held_out: int = Field(200, ge=2, description="maximum human test records")
    min_group_size: int = Field(20, ge=1, description="minimum number of records of a group")
    equal: Literal["tokens", "records"] = Field(
        "tokens", description="unit of equal size: all arms train on the same amount of it"
    )
    student: Student = Field(
        default_factory=FreshStudent, description="the students, and how they are trained"
    )


def run(recipe: DataValueRecipe, job: Job) -> Artifact:
    """Train the students of all arms and report the value of each group.

    Raises as ``run_data_value_study``.
    """
    from stillroom.synth.experiments.data_value import run_data_value_study

    artifact, _, _ = run_data_value_study(recipe, job)
    return artifact


def estimate(recipe: DataValueRecipe) -> Estimate:
    """Estimate memory, disk and time from the number of arms and the size of the student."""
    from stillroom.synth.experiments.ablations import make_ablation_groups, read_record_pools

    families, _ = make_ablation_groups(
        read_record_pools(recipe.paths, recipe.by),
        least=recipe.min_group_size,
        most=recipe.num_records,
        names=recipe.groups,
    )
    students = recipe.num_seeds * sum(1 + len(family.arms) for family in families)
    settings = recipe.student
    parameters = settings.count_parameters()
    size = max((family.size for family in families), default=0)
    steps = settings.train.count_steps(size)
    trained_tokens = steps * settings.train.batch_size * settings.max_tokens
    evaluated_tokens = recipe.num_held_out * settings.max_tokens
    flops = parameters * (6.0 * trained_tokens + 2.0 * evaluated_tokens)
    return Estimate(
        memory_bytes=int(parameters * 20 + 1_000_000_000),
        disk_bytes=int(parameters * 16 + students * recipe.num_held_out * 40),
        seconds=students * (flops / TRAINING_FLOPS_PER_SECOND + 3.0),
        memory_knob="use a smaller student",
        disk_knob="use a smaller student",
        basis=f"{students} students of {parameters / 1e6:.1f} M parameters, "
        f"{count_noun(steps, 'step')} each",
    )


JOB_KIND = JobKind(DataValueRecipe, run, estimate)
