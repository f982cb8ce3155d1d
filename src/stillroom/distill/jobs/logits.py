"""Match the next-token distributions of a local teacher on records.

Word-level distillation (Hinton et al. 2015, arXiv:1503.02531), with the teacher run in every step
or once into a logit cache. A teacher behind an endpoint is ``distill.endpoint_logits``, several are
``distill.multi_teacher``, one with another tokenizer is ``distill.cross_tokenizer``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    METHODS,
    DistillationObjective,
)
from stillroom.distill.preflight.workload import Workload
from stillroom.distill.recipes import (
    LocalTeacherRecipe,
    check_context,
    check_objective_on_records,
)
from stillroom.distill.settings import (
    LiveTargetSettings,
    RationaleChoice,
    TargetChoice,
    TeacherContextSettings,
    TopKTargetSettings,
)
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import PreflightReport
from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "LogitsRecipe", "describe_workload", "estimate", "preflight", "run"]


class LogitsRecipe(LocalTeacherRecipe):
    """Train a student to match a local teacher's distributions on records."""

    kind: Literal["distill.logits"] = Field(default="distill.logits", description="job kind")
    method: Annotated[DistillationObjective, METHODS.choice()] = Field(
        default_factory=lambda: METHODS.build("forward_kl"),
        description="distillation objective, with its settings",
    )
    targets: TargetChoice = Field(
        default_factory=TopKTargetSettings,
        description="storage form of the teacher's distributions",
    )
    rationale: RationaleChoice | None = Field(
        default=None, description="train on rationales in addition to answers; null disables"
    )
    context: TeacherContextSettings | None = Field(
        default=None,
        description="context distillation: text that only the teacher reads, before the question",
    )

    @model_validator(mode="after")
    def _method_learns_from_records(self) -> LogitsRecipe:
        check_objective_on_records(self.method, is_sampled=self.targets.mode == "sampled")
        check_context(self.context, include_prompt=self.include_prompt)
        return self


def describe_workload(recipe: LogitsRecipe) -> Workload:
    """Return what the job does, for estimates and checks."""
    return Workload(
        recipe,
        (recipe.teacher,),
        recipe.method,
        None if isinstance(recipe.targets, LiveTargetSettings) else recipe.targets,
        is_live=isinstance(recipe.targets, LiveTargetSettings),
        rationale=recipe.rationale,
    )


def estimate(recipe: LogitsRecipe) -> Estimate:
    """Estimate memory, disk and time of the job."""
    from stillroom.distill.preflight.resources import estimate_resources

    return estimate_resources(describe_workload(recipe))


def preflight(
    recipe: LogitsRecipe, job_folder: Path, *, loads: bool, fetch: bool, machine: bool
) -> PreflightReport:
    """Check records, models and machine; see ``stillroom.jobs.kind.Preflight``."""
    from stillroom.distill.preflight.checks import run_preflight

    workload = describe_workload(recipe)
    return run_preflight(workload, job_folder, loads=loads, fetch=fetch, machine=machine)


def run(recipe: LogitsRecipe, job: Job) -> Artifact:
    """Train a student to match a local teacher's distributions on records."""
    from stillroom.distill.preflight.checks import require_preflight
    from stillroom.distill.trainers.logits import train_on_logits

    return train_on_logits(recipe, job, require_preflight(describe_workload(recipe), job))


JOB_KIND = JobKind(LogitsRecipe, run, estimate, preflight, is_distributed=True)
