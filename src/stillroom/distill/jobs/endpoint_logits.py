"""Match the log-probabilities that a teacher behind an endpoint returns for the records."""

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
    EndpointTeacherRecipe,
    check_context,
    check_objective_on_records,
)
from stillroom.distill.settings import (
    RationaleChoice,
    TeacherContextSettings,
)
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import PreflightReport
from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "EndpointLogitsRecipe", "describe_workload", "estimate", "preflight", "run"]


class EndpointLogitsRecipe(EndpointTeacherRecipe):
    """Train a student to match the top tokens of a teacher behind an endpoint."""

    kind: Literal["distill.endpoint_logits"] = Field(
        default="distill.endpoint_logits", description="job kind"
    )
    method: Annotated[DistillationObjective, METHODS.choice()] = Field(
        default_factory=lambda: METHODS.build("forward_kl"),
        description="distillation objective, with its settings",
    )
    rationale: RationaleChoice | None = Field(
        default=None, description="train on rationales in addition to answers; null disables"
    )
    context: TeacherContextSettings | None = Field(
        default=None,
        description="context distillation: text that only the teacher reads, before the question",
    )

    @model_validator(mode="after")
    def _method_learns_from_records(self) -> EndpointLogitsRecipe:
        check_objective_on_records(self.method)
        check_context(self.context, include_prompt=self.include_prompt)
        return self


def describe_workload(recipe: EndpointLogitsRecipe) -> Workload:
    """Return what the job does, for estimates and checks."""
    return Workload(
        recipe, (recipe.teacher,), recipe.method, recipe.targets, rationale=recipe.rationale
    )


def estimate(recipe: EndpointLogitsRecipe) -> Estimate:
    """Estimate memory, disk and time of the job."""
    from stillroom.distill.preflight.resources import estimate_resources

    return estimate_resources(describe_workload(recipe))


def preflight(
    recipe: EndpointLogitsRecipe, job_folder: Path, *, loads: bool, fetch: bool, machine: bool
) -> PreflightReport:
    """Check records, models and machine; see ``stillroom.jobs.kind.Preflight``."""
    from stillroom.distill.preflight.checks import run_preflight

    workload = describe_workload(recipe)
    return run_preflight(workload, job_folder, loads=loads, fetch=fetch, machine=machine)


def run(recipe: EndpointLogitsRecipe, job: Job) -> Artifact:
    """Train a student to match the top tokens of a teacher behind an endpoint."""
    from stillroom.distill.preflight.checks import require_preflight
    from stillroom.distill.trainers.endpoint_logits import train_on_endpoint_logits

    return train_on_endpoint_logits(recipe, job, require_preflight(describe_workload(recipe), job))


JOB_KIND = JobKind(EndpointLogitsRecipe, run, estimate, preflight)
