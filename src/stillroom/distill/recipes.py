"""Base classes of the recipes in ``jobs/``, and checks of settings that several of them share.

Each kind of job adds what acts in it alone. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    FEATURE_LOSSES,
    METHODS,
    RECORD_METHODS,
    CrossTokenizerLoss,
    DistillationObjective,
    FeatureLoss,
    RolloutPolicy,
)
from stillroom.distill.settings import (
    EndpointTeacherSettings,
    FidelitySettings,
    PruneSettings,
    RationaleChoice,
    RationaleSettings,
    SequenceSettings,
    StudentOutputSettings,
    Teacher,
    TeacherContextSettings,
    TopKTargetSettings,
    check_scorers,
)
from stillroom.recipes import DISTINCT, Recipe, Reference
from stillroom.train.settings import TrainSettings

__all__ = [
    "OBJECTIVE",
    "RATIONALE",
    "ContextRecipe",
    "EndpointTeacherRecipe",
    "FeatureLosses",
    "LocalTeacherRecipe",
    "ObjectiveRecipe",
    "TrainingRecipe",
    "check_any_weight",
    "check_objective_on_records",
    "check_policy_gradient",
    "check_sharding",
    "check_teacher_apart",
]


FeatureLosses = Annotated[tuple[Annotated[FeatureLoss, FEATURE_LOSSES.choice()], ...], DISTINCT]
OBJECTIVE: Any = Field(
    default_factory=lambda: METHODS.build("forward_kl"),
    description="distillation objective, with its settings",
)
RATIONALE: Any = Field(
    default=None, description="train on rationales in addition to answers; null disables"
)


class TrainingRecipe(Recipe):
    """Settings of every kind that trains a student; a kind adds its teacher and its loss."""

    records: Reference = Field(
        description="a records artifact or file; fields.split 'held_out' excludes from training"
    )
    student: PruneSettings | Reference = Field(
        default_factory=PruneSettings,
        description="pruning settings of a student derived from the teacher, or a checkpoint",
    )
    sequence: SequenceSettings | None = Field(
        default=None,
        description="generate the answers with the teacher or another model (sequence-level "
        "distillation); null keeps them",
    )
    train: TrainSettings = Field(
        default_factory=TrainSettings, description="optimizer, schedule, batch size"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="maximum tokens of a record; longer ones are truncated"
    )
    include_prompt: bool = Field(
        default=True, description="compute the loss on the prompt's tokens too"
    )
    keep_checkpoints: int = Field(
        default=2, ge=0, description="checkpoints kept from the second half of the run, for merging"
    )
    fidelity: FidelitySettings = Field(
        default_factory=FidelitySettings, description="evaluation before and after training"
    )
    output: StudentOutputSettings = Field(
        default_factory=StudentOutputSettings, description="storage format of checkpoints"
    )

    def find_teacher(self) -> Teacher | None:
        """Return the single teacher; None in kinds with several."""
        return getattr(self, "teacher", None)

    def find_rationale(self) -> RationaleSettings | None:
        """Return the settings of rationales; None also in kinds that train on none."""
        return getattr(self, "rationale", None)

    def find_context(self) -> TeacherContextSettings | None:
        """Return the context that only the teacher reads; None also in kinds without one."""
        return getattr(self, "context", None)

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> TrainingRecipe:
        lora = self.train.lora
        if lora is not None and lora.keep_adapter and not isinstance(self.student, str):
            raise ValueError(
                "train.lora.keep_adapter requires 'student' to be a checkpoint: a student derived "
                "from the teacher has no published base checkpoint for the adapter"
            )
        return self


class ObjectiveRecipe(TrainingRecipe):
    """Settings of a kind that compares distributions over one vocabulary."""

    method: Annotated[DistillationObjective, RECORD_METHODS.choice()] = OBJECTIVE


class ContextRecipe(TrainingRecipe):
    """Settings of a kind whose texts are records, which the teacher may read with a context."""

    rationale: RationaleChoice | None = RATIONALE
    context: TeacherContextSettings | None = Field(
        default=None,
        description="context distillation: text that only the teacher reads, before the question",
    )

    @model_validator(mode="after")
    def _context_hides_prompts(self) -> ContextRecipe:
        if self.context is not None and self.include_prompt:
            raise ValueError(
                "'context' compares only the assistant's tokens; set include_prompt: false"
            )
        return self


class _LocalTeacher(Recipe):  # a base class of its own, so that recipes begin with the teacher
    teacher: Reference = Field(
        examples=["path/to/teacher"], description="checkpoint of the teacher"
    )


class LocalTeacherRecipe(ObjectiveRecipe, _LocalTeacher):
    """Settings of a kind with one teacher in this process."""


class _EndpointTeacher(Recipe):
    teacher: EndpointTeacherSettings = Field(
        description="a model behind an OpenAI-compatible server, which scores prompts"
    )


class EndpointTeacherRecipe(ObjectiveRecipe, _EndpointTeacher):
    """Settings of a kind with one teacher behind an endpoint, of the student's vocabulary."""

    student: Reference = Field(
        examples=["path/to/student"],
        description="a checkpoint with the teacher's tokenizer; weights behind an endpoint cannot "
        "be pruned",
    )
    targets: TopKTargetSettings = Field(
        default_factory=TopKTargetSettings,
        description="storage of the teacher's distributions on the records",
    )

    @model_validator(mode="after")
    def _endpoint_scores(self) -> EndpointTeacherRecipe:
        if self.sequence is not None and self.sequence.model is None:
            check_scorers(self.sequence)
        return self


def check_objective_on_records(method: DistillationObjective, *, is_sampled: bool = False) -> None:
    """Reject an objective that cannot learn the teacher's distributions on records.

    Raises:
        ValueError: Naming the kind or the setting to use instead.
    """
    name = method.method_name()
    if not method.kd_weight:
        raise ValueError(
            "with method.kd_weight 0 no teacher is imitated: use kind distill.supervised"
        )
    if is_sampled and not method.takes_samples:
        raise ValueError(
            f"method '{name}' does not support targets.mode 'sampled'; use method forward_kl, or "
            "targets.mode top_k"
        )


def check_any_weight(
    main: DistillationObjective | CrossTokenizerLoss, feature_losses: Sequence[FeatureLoss] = ()
) -> None:
    """Reject a loss that is 0 everywhere, which would only decay the weights.

    Raises:
        ValueError: Naming the weights, one of which must be above 0.
    """
    if not (main.kd_weight or main.ce_weight or feature_losses):
        raise ValueError(
            "every weight of the loss is 0, so that nothing is learned: set kd_weight or ce_weight"
        )


def check_policy_gradient(method: DistillationObjective, policy: RolloutPolicy) -> None:
    """Reject a rollout policy that gives a policy gradient nothing to learn.

    Raises:
        ValueError: Naming the settings that contradict each other.
    """
    if not method.needs_scores:
        return
    name = method.method_name()
    if not policy.draws_from_student:
        raise ValueError(
            f"'{name}' needs tokens sampled from the student, and '{policy.method_name()}' "
            "selects among them: use rollout_policy on_policy or mixed_sampling"
        )
    if method.ce_weight == 0 and policy.uses_other_text:
        raise ValueError(
            f"'{name}' has no loss on text not generated by the student: set method.ce_weight, or "
            "rollout_policy.student_share to 1 and rollout_policy.warm_up to 0"
        )


def check_teacher_apart(policy: RolloutPolicy) -> None:
    """Reject a rollout policy that generates with a teacher that cannot write the student's tokens.

    Raises:
        ValueError: Naming the policies to use instead.
    """
    if policy.may_need_teacher:
        raise ValueError(
            f"rollout_policy '{policy.method_name()}' also generates with the teacher, token by "
            "token, and a teacher behind an endpoint or with another tokenizer only scores "
            "finished text: use on_policy with other_text: records, or replay"
        )


def check_sharding(train: TrainSettings) -> None:
    """Reject a split student, which could not generate rollouts.

    Raises:
        ValueError: If the student is split over processes.
    """
    if train.sharding != "none":
        raise ValueError(
            "rollouts are generated by the full student, and train.sharding splits it over "
            "processes; set train.sharding: none"
        )
