"""Match the hidden states and attention of a local teacher, next to its distributions.

Feature distillation (Romero et al. 2015, arXiv:1412.6550); the teacher runs in every step.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import METHODS, RECORD_METHODS, DistillationObjective
from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import RATIONALE, FeatureLosses, LocalTeacherRecipe, check_any_weight
from stillroom.distill.settings import RationaleChoice

__all__ = ["JOB_KIND", "FeaturesRecipe"]


class FeaturesRecipe(LocalTeacherRecipe):
    """Train a student to match a local teacher's internal states, next to its distributions."""

    kind: Literal["distill.features"] = Field(default="distill.features", description="job kind")
    method: Annotated[DistillationObjective, RECORD_METHODS.choice()] = Field(
        default_factory=lambda: METHODS.build("forward_kl"),
        description="objective on the distributions, with its settings; kd_weight 0 leaves it out",
    )
    feature_losses: FeatureLosses = Field(
        min_length=1, description="losses on internal states of both models, added to the objective"
    )
    rationale: RationaleChoice | None = RATIONALE

    @model_validator(mode="after")
    def _has_a_loss(self) -> FeaturesRecipe:
        check_any_weight(self.method, self.feature_losses)
        return self


JOB_KIND = declare_kind(FeaturesRecipe, "logits:train_on_features", is_distributed=True)
