"""Match a teacher whose tokenizer differs from the student's.

Both texts are aligned by bytes; the loss compares chunks of text or rows of distributions.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    APART_ROLLOUT_POLICIES,
    CROSS_TOKENIZER_LOSSES,
    CrossTokenizerLoss,
    RolloutPolicy,
)
from stillroom.distill.jobs.declaration import declare_kind
from stillroom.distill.recipes import (
    ContextRecipe,
    check_any_weight,
    check_sharding,
    check_teacher_apart,
)
from stillroom.distill.settings import EndpointTeacherSettings, RationaleTaskSettings, check_scorers
from stillroom.recipes import Recipe, Reference

__all__ = ["JOB_KIND", "CrossTokenizerRecipe"]


class _AnyTeacher(Recipe):  # a base class of its own, so that the recipe begins with the teacher
    teacher: Reference | EndpointTeacherSettings = Field(
        examples=["path/to/teacher"],
        description="checkpoint of the teacher; or an endpoint, {endpoint: ..., tokenizer: ...}",
    )


class CrossTokenizerRecipe(ContextRecipe, _AnyTeacher):
    """Train a student whose tokenizer differs from the teacher's."""

    kind: Literal["distill.cross_tokenizer"] = Field(
        default="distill.cross_tokenizer", description="job kind"
    )
    student: Reference = Field(
        examples=["path/to/student"], description="a checkpoint with its own tokenizer"
    )
    cross_tokenizer_loss: Annotated[CrossTokenizerLoss, CROSS_TOKENIZER_LOSSES.choice()] = Field(
        default_factory=lambda: CROSS_TOKENIZER_LOSSES.build("chunk_likelihood"),
        description="loss between the two tokenizers, with its settings",
    )
    cache: str | None = Field(
        default=None,
        description="folder of a cache of the teacher's log-probabilities, shared by several jobs; "
        "null stores it in the job",
    )
    rollout_policy: Annotated[RolloutPolicy, APART_ROLLOUT_POLICIES.choice()] | None = Field(
        default=None,
        description="source of generated training text in addition to records; null uses records "
        "only",
    )

    @model_validator(mode="after")
    def _records_fit(self) -> CrossTokenizerRecipe:
        check_any_weight(self.cross_tokenizer_loss)
        if isinstance(self.rationale, RationaleTaskSettings) and self.rationale.weight != 1:
            raise ValueError("across tokenizers all records have weight 1: remove rationale.weight")
        is_served = not isinstance(self.teacher, str)
        if is_served and self.sequence is not None and self.sequence.model is None:
            check_scorers(self.sequence)
        return self

    @model_validator(mode="after")
    def _student_generates(self) -> CrossTokenizerRecipe:
        if self.rollout_policy is None:
            return self
        check_teacher_apart(self.rollout_policy)
        check_sharding(self.train)
        for name in ("context", "rationale"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"'rollout_policy' and '{name}' cannot be combined: remove one of them"
                )
        return self


JOB_KIND = declare_kind(CrossTokenizerRecipe, "cross_tokenizer:train_across_tokenizers")
