"""Match the distributions of several teachers, by weight or by a record's source.

Teachers may be local or behind endpoints; all have the student's tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import ContextRecipe, ObjectiveRecipe, check_objective_on_records
from stillroom.distill.settings import (
    CachedTargetChoice,
    EndpointTeacherSettings,
    SequenceSettings,
    TopKTargetSettings,
    WeightedTeacherSettings,
    check_teacher_weights,
)
from stillroom.recipes import DISTINCT, Recipe, Reference

__all__ = ["JOB_KIND", "MultiTeacherRecipe", "NamedSequenceSettings"]


class _SeveralTeachers(Recipe):  # a base class of its own, so that the recipe begins with them
    teachers: Annotated[tuple[WeightedTeacherSettings, ...], DISTINCT] = Field(
        min_length=1,
        description="teachers with their weights, or each with the source of its records",
    )
    source_field: str = Field(
        default="source",
        description="field of a record that selects its teacher, if teachers have a source; "
        "origin uses the kind of the record's origin",
    )


class NamedSequenceSettings(SequenceSettings):
    """Generation of answers where there are several teachers: the model is named."""

    model: Reference = Field(
        examples=["path/to/model"], description="a checkpoint, a .gguf file or an endpoint"
    )


class MultiTeacherRecipe(ContextRecipe, ObjectiveRecipe, _SeveralTeachers):
    """Train a student to match the distributions of several teachers on records."""

    kind: Literal["distill.multi_teacher"] = Field(
        default="distill.multi_teacher", description="job kind"
    )
    targets: CachedTargetChoice = Field(
        default_factory=TopKTargetSettings,
        description="storage form of the teachers' distributions; endpoints need top_k",
    )

    sequence: NamedSequenceSettings | None = Field(
        default=None,
        description="generate the answers with a model (sequence-level distillation); null keeps "
        "them",
    )

    @model_validator(mode="after")
    def _method_learns_from_records(self) -> MultiTeacherRecipe:
        check_objective_on_records(self.method, is_sampled=self.targets.mode == "sampled")
        return self

    @model_validator(mode="after")
    def _teachers_fit(self) -> MultiTeacherRecipe:
        check_teacher_weights(self.teachers)
        is_served = [isinstance(one.teacher, EndpointTeacherSettings) for one in self.teachers]
        if any(is_served) and self.targets.mode != "top_k":
            raise ValueError(
                f"targets.mode '{self.targets.mode}' requires local teachers: use top_k"
            )
        if is_served[0] and not isinstance(self.student, str):
            raise ValueError(
                "a teacher behind an endpoint cannot be pruned: 'student' must be a checkpoint, or "
                "a local teacher the first"
            )
        written = self.rationale.generate if self.rationale else None
        if written is not None and not written.model:
            raise ValueError(
                "several teachers: set the generating model as rationale.generate.model"
            )
        return self


JOB_KIND = declare_kind(MultiTeacherRecipe, "multi_teacher:train_on_several_teachers")
