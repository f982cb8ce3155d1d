"""Match the next-token distributions of a local teacher on records.

Word-level distillation (Hinton et al. 2015, arXiv:1503.02531), with the teacher run in every step
or once into a logit cache. A teacher behind an endpoint is ``distill.endpoint_logits``, several are
``distill.multi_teacher``, one with another tokenizer is ``distill.cross_tokenizer``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import ContextRecipe, LocalTeacherRecipe, check_objective_on_records
from stillroom.distill.settings import TargetChoice, TopKTargetSettings

__all__ = ["JOB_KIND", "LogitsRecipe"]


class LogitsRecipe(ContextRecipe, LocalTeacherRecipe):
    """Train a student to match a local teacher's distributions on records."""

    kind: Literal["distill.logits"] = Field(default="distill.logits", description="job kind")
    targets: TargetChoice = Field(
        default_factory=TopKTargetSettings,
        description="storage form of the teacher's distributions",
    )

    @model_validator(mode="after")
    def _method_learns_from_records(self) -> LogitsRecipe:
        check_objective_on_records(self.method, is_sampled=self.targets.mode == "sampled")
        return self


JOB_KIND = declare_kind(LogitsRecipe, "logits:train_on_logits", is_distributed=True)
