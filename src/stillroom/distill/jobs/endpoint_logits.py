"""Match the log-probabilities that a teacher behind an endpoint returns for the records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.preflight.workload import Workload
from stillroom.distill.recipes import (
    ContextRecipe,
    EndpointTeacherRecipe,
    check_objective_on_records,
)
from stillroom.jobs import Job
from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "EndpointLogitsRecipe", "describe_workload", "run"]


class EndpointLogitsRecipe(EndpointTeacherRecipe, ContextRecipe):
    """Train a student to match the top tokens of a teacher behind an endpoint."""

    kind: Literal["distill.endpoint_logits"] = Field(
        default="distill.endpoint_logits", description="job kind"
    )

    @model_validator(mode="after")
    def _method_learns_from_records(self) -> EndpointLogitsRecipe:
        check_objective_on_records(self.method)
        return self


def describe_workload(recipe: EndpointLogitsRecipe) -> Workload:
    """Return what the job does, for estimates and checks."""
    return Workload(
        recipe, (recipe.teacher,), recipe.method, recipe.targets, rationale=recipe.rationale
    )


def run(recipe: EndpointLogitsRecipe, job: Job) -> Artifact:
    """Train a student to match the top tokens of a teacher behind an endpoint."""
    from stillroom.distill.preflight.checks import require_preflight
    from stillroom.distill.trainers.endpoint import train_on_endpoint_logits

    return train_on_endpoint_logits(recipe, job, require_preflight(describe_workload(recipe), job))


JOB_KIND = declare_kind(EndpointLogitsRecipe, run, describe_workload, journals=())
