"""Match a local teacher on text that the student samples during training.

Generalized knowledge distillation (GKD, Agarwal et al. 2024, arXiv:2306.13649; TRL's GKDTrainer)
and MiniLLM (Gu et al. 2024, arXiv:2306.08543). A teacher behind an endpoint is
``distill.endpoint_on_policy``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    METHODS,
    ROLLOUT_POLICIES,
    DistillationObjective,
    RolloutPolicy,
)
from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import (
    OBJECTIVE,
    FeatureLosses,
    LocalTeacherRecipe,
    check_any_weight,
    check_policy_gradient,
    check_sharding,
)

__all__ = ["JOB_KIND", "OnPolicyRecipe"]


class OnPolicyRecipe(LocalTeacherRecipe):
    """Train a student on its own samples, with a local teacher's distributions."""

    kind: Literal["distill.on_policy"] = Field(default="distill.on_policy", description="job kind")
    method: Annotated[DistillationObjective, METHODS.choice()] = OBJECTIVE
    rollout_policy: Annotated[RolloutPolicy, ROLLOUT_POLICIES.choice()] = Field(
        default_factory=lambda: ROLLOUT_POLICIES.build("on_policy"),
        description="source of generated training text in addition to records",
    )
    feature_losses: FeatureLosses = Field(
        default=(),
        description="losses on internal states of both models, added to the objective",
    )

    @model_validator(mode="after")
    def _student_generates(self) -> OnPolicyRecipe:
        check_any_weight(self.method, self.feature_losses)
        check_policy_gradient(self.method, self.rollout_policy)
        check_sharding(self.train)
        return self


JOB_KIND = declare_kind(OnPolicyRecipe, "on_policy:train_on_policy", is_distributed=True)
