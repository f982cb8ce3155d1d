"""Match the log-probabilities that a teacher behind an endpoint returns for the records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import (
    ContextRecipe,
    EndpointTeacherRecipe,
    check_objective_on_records,
)

__all__ = ["JOB_KIND", "EndpointLogitsRecipe"]


class EndpointLogitsRecipe(EndpointTeacherRecipe, ContextRecipe):
    """Train a student to match the top tokens of a teacher behind an endpoint."""

    kind: Literal["distill.endpoint_logits"] = Field(
        default="distill.endpoint_logits", description="job kind"
    )

    @model_validator(mode="after")
    def _method_learns_from_records(self) -> EndpointLogitsRecipe:
        check_objective_on_records(self.method)
        return self


JOB_KIND = declare_kind(EndpointLogitsRecipe, "endpoint:train_on_endpoint_logits", journals=())
