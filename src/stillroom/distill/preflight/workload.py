"""What a job will do, for estimates and checks that all kinds share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stillroom.distill.interfaces import (
    CrossTokenizerLoss,
    DistillationObjective,
    FeatureLoss,
    RolloutPolicy,
)
from stillroom.distill.recipes import TrainingRecipe
from stillroom.distill.settings import (
    CachedTargetSettings,
    EndpointTeacherSettings,
    LiveTargetSettings,
    RationaleSettings,
    Teacher,
    TextEndpointSettings,
)

if TYPE_CHECKING:
    from stillroom.distill.data.tokenized import DatasetSize

__all__ = ["Workload", "describe_workload"]


@dataclass(frozen=True)
class Workload:
    """Teachers, loss and text of a job that trains a student.

    Args:
        recipe: Settings that all kinds share.
        teachers: At least one.
        method: Objective on one vocabulary; None learns text only.
        targets: Form in which distributions are stored; None stores none.
        is_live: Whether the teacher runs in every step.
        teachers_per_record: Number of teachers that score each record.
        feature_losses: Losses on internal states.
        cross_tokenizer_loss: Loss between two vocabularies.
        rollout_policy: Source of generated training text.
        rationale: Rationales to train on.
    """

    recipe: TrainingRecipe
    teachers: tuple[Teacher, ...]
    method: DistillationObjective | None = None
    targets: CachedTargetSettings | None = None
    is_live: bool = False
    teachers_per_record: int = 1
    feature_losses: tuple[FeatureLoss, ...] = ()
    cross_tokenizer_loss: CrossTokenizerLoss | None = None
    rollout_policy: RolloutPolicy | None = None
    rationale: RationaleSettings | None = None

    @property
    def local_teacher(self) -> str | None:
        """Reference of the teacher, if it is a single local one."""
        (first, *others) = self.teachers
        return first if isinstance(first, str) and not others else None

    @property
    def endpoints(self) -> list[TextEndpointSettings]:
        """Teachers behind an endpoint."""
        return [teacher for teacher in self.teachers if isinstance(teacher, TextEndpointSettings)]

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's outputs on text are needed."""
        if self.cross_tokenizer_loss is not None:
            return True
        return self.method is not None and self.method.asks_teacher

    @property
    def reads_records(self) -> bool:
        """Whether the student trains on records, and not on rollouts only."""
        return self.rollout_policy is None or self.rollout_policy.uses_records

    @property
    def teacher_tokenizer(self) -> str:
        """Reference of the first teacher's tokenizer; empty if it only generates text."""
        first = self.teachers[0]
        if isinstance(first, EndpointTeacherSettings):
            return first.tokenizer
        return first if isinstance(first, str) else ""

    @property
    def student_tokenizer(self) -> str:
        """Reference of the student's tokenizer."""
        is_own = self.cross_tokenizer_loss is not None or not self.teacher_tokenizer
        return str(self.recipe.student) if is_own else self.teacher_tokenizer

    @cached_property
    def dataset_size(self) -> DatasetSize:
        """Size of the training data, measured once for all estimates."""
        from stillroom.distill.data.tokenized import measure_dataset_size  # it imports torch

        return measure_dataset_size(
            self.recipe.records,
            self.student_tokenizer,
            max_tokens=self.recipe.max_tokens,
            include_prompt=self.recipe.include_prompt,
        )


def describe_workload(recipe: TrainingRecipe) -> Workload:
    """Return what a job does, of any kind that trains a student: settings it lacks do nothing."""
    settings = dict(recipe)
    method, loss = settings.get("method"), settings.get("cross_tokenizer_loss")
    targets, shares = settings.get("targets"), settings.get("teachers", ())
    if isinstance(targets, LiveTargetSettings):
        targets = None
    return Workload(
        recipe,
        tuple(share.teacher for share in shares) or (settings["teacher"],),
        method,
        targets,
        is_live=loss.compares == "rows" if loss else method is not None and targets is None,
        teachers_per_record=len(shares) if shares and not shares[0].source else 1,
        feature_losses=settings.get("feature_losses", ()),
        cross_tokenizer_loss=loss,
        rollout_policy=settings.get("rollout_policy"),
        rationale=settings.get("rationale"),
    )
