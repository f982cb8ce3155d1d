"""Match a teacher behind an endpoint on text that the student samples during training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    APART_ROLLOUT_POLICIES,
    METHODS,
    ROLLOUT_POLICIES,
    DistillationObjective,
    RolloutPolicy,
)
from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import (
    OBJECTIVE,
    EndpointTeacherRecipe,
    check_any_weight,
    check_policy_gradient,
    check_sharding,
    check_teacher_apart,
)

__all__ = ["JOB_KIND", "EndpointOnPolicyRecipe"]


class EndpointOnPolicyRecipe(EndpointTeacherRecipe):
    """Train a student on its own samples, with the log-probabilities of an endpoint."""

    kind: Literal["distill.endpoint_on_policy"] = Field(
        default="distill.endpoint_on_policy", description="job kind"
    )
    method: Annotated[DistillationObjective, METHODS.choice()] = OBJECTIVE
    rollout_policy: Annotated[RolloutPolicy, APART_ROLLOUT_POLICIES.choice()] = Field(
        default_factory=lambda: ROLLOUT_POLICIES.build("on_policy"),
        description="source of generated training text in addition to records",
    )

    @model_validator(mode="after")
    def _student_generates(self) -> EndpointOnPolicyRecipe:
        check_any_weight(self.method)
        check_policy_gradient(self.method, self.rollout_policy)
        check_teacher_apart(self.rollout_policy)
        check_sharding(self.train)
        return self


JOB_KIND = declare_kind(EndpointOnPolicyRecipe, "endpoint:train_on_policy_by_endpoint", journals=())
