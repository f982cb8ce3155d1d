"""Train a student on text (SFT): labels, or completions and rationales that a model generates.

What TRL's SFTTrainer does, and with ``sequence`` sequence-level distillation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import RATIONALE, TrainingRecipe
from stillroom.distill.settings import RationaleChoice, TextEndpointSettings, check_scorers
from stillroom.recipes import Recipe, Reference

__all__ = ["JOB_KIND", "SupervisedRecipe"]


class _TextTeacher(Recipe):  # a base class of its own, so that the recipe begins with the teacher
    teacher: Reference | TextEndpointSettings = Field(
        examples=["path/to/teacher"],
        description="checkpoint of the teacher, which may be pruned to the student and is compared "
        "with it; or an endpoint, {endpoint: ...}, which only generates text",
    )


class SupervisedRecipe(TrainingRecipe, _TextTeacher):
    """Train a student on text by cross-entropy."""

    kind: Literal["distill.supervised"] = Field(
        default="distill.supervised", description="job kind"
    )
    rationale: RationaleChoice | None = RATIONALE

    @model_validator(mode="after")
    def _endpoint_generates(self) -> SupervisedRecipe:
        if isinstance(self.teacher, str):
            return self
        if not isinstance(self.student, str):
            raise ValueError(
                "a teacher behind an endpoint cannot be pruned: 'student' must be a checkpoint"
            )
        if self.sequence is not None and self.sequence.model is None:
            check_scorers(self.sequence)
        if self.sequence is None and (self.rationale is None or self.rationale.generate is None):
            raise ValueError(
                "an endpoint has no effect unless it generates: add 'sequence', or 'rationale' "
                "with 'generate'"
            )
        return self


JOB_KIND = declare_kind(SupervisedRecipe, "supervised:train_on_text", is_distributed=True)
