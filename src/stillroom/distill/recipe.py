"""Recipe of a distillation: teacher, student, data, loss, training and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    CROSS_TOKENIZER_LOSSES,
    FEATURE_LOSSES,
    METHODS,
    ROLLOUT_POLICIES,
    CrossTokenizerLoss,
    DistillationObjective,
    FeatureLoss,
    RolloutPolicy,
)
from stillroom.distill.settings import (
    EndpointTeacherSettings,
    GenerationSettings,
    PruneSettings,
    RationaleSettings,
    SequenceSettings,
    TargetMode,
    TeacherChoice,
    TeacherContextSettings,
    check_teacher_weights,
)
from stillroom.recipes import Recipe, Reference, Settings, Size
from stillroom.train.settings import TrainSettings

__all__ = ["DistillRecipe", "FidelitySettings", "StudentOutputSettings", "TargetSettings"]


class TargetSettings(Settings):
    """Storage form of the teacher's distributions."""

    mode: TargetMode = Field(
        default="top_k",
        description="top_k: the most likely tokens and the mass of the rest; sampled: tokens "
        "sampled from the teacher, unbiased; dense: the full vocabulary, on disk; live: nothing is "
        "stored, the teacher runs in every step",
    )
    k: int = Field(default=64, ge=1, le=4096, description="tokens per position in mode top_k")
    samples: int = Field(
        default=12,
        ge=1,
        le=4096,
        description="distinct tokens sampled per position in mode sampled",
    )
    sampling_temperature: float = Field(
        default=1.0,
        gt=0,
        description="mode sampled samples from the teacher's probabilities to the power of 1 over "
        "this; weights correct for it",
    )
    logprob_dtype: Literal["float16", "float32"] = Field(
        default="float16", description="storage type of cached log-probabilities"
    )
    cache: str | None = Field(
        default=None,
        description="folder of a logit cache shared by several jobs; null stores it in the job",
    )


class FidelitySettings(Settings):
    """Evaluation of the distance to the teacher, with a baseline."""

    records: int = Field(
        default=32,
        ge=0,
        description="number of held-out records measured, from the first; 0 measures nothing",
    )
    control: bool = Field(
        default=True,
        description="train a baseline on the records' labels only, with the same initial weights, "
        "records, steps and seed, and measure it next to the student",
    )
    keep_control: bool = Field(
        default=False, description="keep the baseline's checkpoint in output/control"
    )
    answers: int = Field(
        default=16,
        ge=0,
        description="number of those records answered by teacher, student and baseline; 0 skips "
        "measurements on generated text",
    )
    max_new_tokens: int = Field(
        default=48, ge=1, le=4096, description="maximum tokens of a generated answer"
    )
    speed: bool = Field(
        default=True, description="measure latency and peak memory of teacher and student"
    )


class StudentOutputSettings(Settings):
    """Storage format of checkpoints."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="storage type of the weights"
    )
    shard_size: Size = Field(
        default=5_000_000_000, gt=0, description="maximum size of one weights file in bytes"
    )


class DistillRecipe(Recipe):
    """Train a smaller student to match the teacher's distributions on your records."""

    kind: Literal["distill"] = Field(default="distill", description="distill a student")
    teacher: TeacherChoice = Field(
        examples=["path/to/teacher"],
        description="a checkpoint; or an endpoint, {endpoint: ..., tokenizer: ...}; or several "
        "teachers, each {teacher: ..., weight: ..., source: ...}",
    )
    source_field: str = Field(
        default="source",
        description="field of a record that selects its teacher, if teachers have a source; "
        "origin uses the kind of the record's origin",
    )
    records: Reference = Field(
        description="a records artifact or file; fields.split 'held_out' excludes from training"
    )
    student: PruneSettings | Reference = Field(
        default_factory=PruneSettings,
        description="pruning settings of a student derived from the teacher, or a checkpoint",
    )
    method: Annotated[DistillationObjective, METHODS.choice()] = Field(
        default_factory=lambda: METHODS.build("forward_kl"),
        description="distillation objective, with its settings",
    )
    crossing: Annotated[CrossTokenizerLoss, CROSS_TOKENIZER_LOSSES.choice()] | None = Field(
        default=None,
        description="loss between different tokenizers, in place of method; null requires one "
        "tokenizer",
    )
    features: tuple[Annotated[FeatureLoss, FEATURE_LOSSES.choice()], ...] = Field(
        default=(),
        description="losses on internal states of both models, added to the objective; require "
        "targets.mode live",
    )
    targets: TargetSettings = Field(
        default_factory=TargetSettings, description="storage form of the teacher's distributions"
    )
    sequence: SequenceSettings | None = Field(
        default=None,
        description="generate the answers with the teacher or another model; null keeps them",
    )
    rationale: RationaleSettings | None = Field(
        default=None, description="train on rationales in addition to answers; null disables"
    )
    context: TeacherContextSettings | None = Field(
        default=None,
        description="context that only the teacher reads, before the question",
    )
    rollouts: Annotated[RolloutPolicy, ROLLOUT_POLICIES.choice()] | None = Field(
        default=None,
        description="source of generated training text in addition to records; null uses records "
        "only",
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
    candidates: int = Field(
        default=2, ge=0, description="checkpoints kept from the second half of the run, for merging"
    )
    fidelity: FidelitySettings = Field(
        default_factory=FidelitySettings, description="evaluation before and after training"
    )
    out: StudentOutputSettings = Field(
        default_factory=StudentOutputSettings, description="storage format of checkpoints"
    )

    @model_validator(mode="after")
    def _method_takes_targets(self) -> DistillRecipe:
        if self.targets.mode == "sampled" and not self.method.takes_samples:
            raise ValueError(
                f"method '{self.method.method_name()}' does not support targets.mode 'sampled'; "
                "use method forward_kl, or targets.mode top_k"
            )
        return self

    @model_validator(mode="after")
    def _context_hides_prompts(self) -> DistillRecipe:
        if self.context is not None and self.include_prompt:
            raise ValueError(
                "'context' compares only the assistant's tokens; set include_prompt: false"
            )
        return self

    @model_validator(mode="after")
    def _crossing_takes_the_place_of_method(self) -> DistillRecipe:
        if self.crossing is None:
            return self
        if not isinstance(self.student, str):
            raise ValueError(
                "with 'crossing', 'student' must be a checkpoint with its own tokenizer: a pruned "
                "student has the teacher's"
            )
        if self.method != METHODS.build("forward_kl"):
            raise ValueError(
                "'method' compares one vocabulary and 'crossing' two: set only one of them; "
                "'crossing' has its own kd_weight and ce_weight"
            )
        if self.targets.model_copy(update={"cache": None}) != TargetSettings():
            raise ValueError("with 'crossing', only 'cache' of 'targets' has an effect")
        if self.rationale is not None and self.rationale.weight != 1:
            raise ValueError("with 'crossing' all records have weight 1: remove rationale.weight")
        return self

    @model_validator(mode="after")
    def _rollouts_need_the_whole_student(self) -> DistillRecipe:
        if self.rollouts is not None and self.train.sharding != "none":
            raise ValueError(
                "'rollouts' are generated by the full student, and train.sharding splits it over "
                "processes; set train.sharding: none"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> DistillRecipe:
        lora = self.train.lora
        if lora is not None and lora.keep_adapter and not isinstance(self.student, str):
            raise ValueError(
                "train.lora.keep_adapter requires 'student' to be a checkpoint: a student derived "
                "from the teacher has no published base checkpoint for the adapter"
            )
        return self

    @model_validator(mode="after")
    def _features_need_the_teacher(self) -> DistillRecipe:
        if self.features and (self.context is not None or self.crossing is not None):
            setting = "crossing" if self.crossing is not None else "context"
            raise ValueError(
                f"features compare both models at the same tokens, and with '{setting}' the "
                "teacher reads different ones; remove one of the two"
            )
        if self.features and not isinstance(self.teacher, str):
            raise ValueError(
                "'features' require one local teacher: an endpoint returns no internal states, and "
                "several teachers would all be in memory in every step"
            )
        if self.features and self.targets.mode != "live":
            raise ValueError(
                f"features require the teacher's internal states, and targets.mode "
                f"'{self.targets.mode}' stores only its outputs; set targets.mode: live"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_have_a_teacher(self) -> DistillRecipe:
        policy, is_served = self.rollouts, isinstance(self.teacher, EndpointTeacherSettings)
        if policy is None:
            return self
        if isinstance(self.teacher, tuple):
            raise ValueError(
                "'rollouts' support one teacher: several would all be in memory in every step"
            )
        if is_served and policy.may_need_teacher:
            raise ValueError(
                f"rollouts '{policy.method_name()}' need the teacher during generation, token by "
                "token, and an endpoint scores finished text: use on_policy with rest: records, or "
                "replay"
            )
        if self.crossing is not None and policy.may_need_teacher:
            raise ValueError(
                f"rollouts '{policy.method_name()}' also generate with the teacher, whose tokens "
                "are not the student's: use on_policy with rest: records, or replay"
            )
        if not is_served and self.crossing is None and self.targets.mode != "live":
            raise ValueError(
                f"targets.mode '{self.targets.mode}' stores outputs on the records; rollouts are "
                "new text: set targets.mode to live"
            )
        for name in ("context", "rationale"):
            if getattr(self, name) is not None:
                raise ValueError(f"'rollouts' and '{name}' cannot be combined: remove one of them")
        return self

    @model_validator(mode="after")
    def _teachers_can_teach(self) -> DistillRecipe:
        if isinstance(self.teacher, str):
            return self
        if isinstance(self.teacher, tuple):
            check_teacher_weights(self.teacher)
        first = self.teacher[0].teacher if isinstance(self.teacher, tuple) else self.teacher
        if isinstance(first, EndpointTeacherSettings) and not isinstance(self.student, str):
            raise ValueError(
                "a teacher behind an endpoint cannot be pruned: 'student' must be a checkpoint"
            )
        if isinstance(self.teacher, tuple) and self.crossing is not None:
            raise ValueError("'crossing' supports one teacher: several need one vocabulary")
        self._refuse_targets()
        self._refuse_writers()
        return self

    @property
    def teacher_only_writes(self) -> bool:
        """Whether the teacher only generates text: an endpoint without a tokenizer."""
        return isinstance(self.teacher, EndpointTeacherSettings) and self.teacher.tokenizer is None

    @model_validator(mode="after")
    def _writers_write(self) -> DistillRecipe:
        shares = self.teacher if isinstance(self.teacher, tuple) else ()
        for share in shares:
            if (
                isinstance(share.teacher, EndpointTeacherSettings)
                and share.teacher.tokenizer is None
            ):
                raise ValueError("among several teachers an endpoint requires its 'tokenizer'")
        if not self.teacher_only_writes:
            return self
        asks = {
            "crossing": self.crossing is not None,
            "rollouts": self.rollouts is not None,
            "context": self.context is not None,
            f"method.kd_weight {self.method.kd_weight:g}": self.method.kd_weight > 0,
        }
        required = [name for name, is_set in asks.items() if is_set]
        if required:
            raise ValueError(
                "an endpoint without 'tokenizer' only generates text, and these need its "
                f"log-probabilities: {', '.join(required)}. Set teacher.tokenizer, or train on the "
                "text only: method: {name: forward_kl, kd_weight: 0, ce_weight: 1}"
            )
        has_writer = self.rationale is not None and self.rationale.write is not None
        if self.sequence is None and not has_writer:
            raise ValueError(
                "an endpoint without 'tokenizer' has no effect: add 'sequence', or 'rationale' "
                "with 'write'"
            )
        return self

    def _refuse_targets(self) -> None:
        """Reject targets that an endpoint cannot provide, or that several teachers cannot use."""
        mode = self.targets.mode
        shares = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        served = [
            isinstance(getattr(share, "teacher", share), EndpointTeacherSettings)
            for share in shares
        ]
        if self.crossing is None and (mode == "live" or (mode == "dense" and any(served))):
            raise ValueError(
                f"targets.mode '{mode}' requires a local teacher, and live a single one: use top_k"
            )

    def _refuse_writers(self) -> None:
        """Reject several teachers unless the generating model is set."""
        writers: dict[str, GenerationSettings | None] = {"sequence": self.sequence}
        if self.rationale is not None:
            writers["rationale.write"] = self.rationale.write
        for name, settings in writers.items():
            if isinstance(self.teacher, tuple) and settings is not None and not settings.model:
                raise ValueError(f"several teachers: set the generating model as {name}.model")

    @model_validator(mode="after")
    def _verifiers_can_judge(self) -> DistillRecipe:
        if self.sequence is None:
            return self
        is_served = (
            isinstance(self.teacher, EndpointTeacherSettings) and self.sequence.model is None
        )
        names = [scorer.method_name() for scorer in self.sequence.verifiers if scorer.needs_scores]
        if names and (is_served or str(self.sequence.model).startswith(("http://", "https://"))):
            raise ValueError(
                f"sequence.verifiers '{names[0]}' requires log-probabilities of given text, which "
                "endpoints do not return: set verifiers: [agreement], or attempts: 1 and "
                "verifiers: []"
            )
        return self

    @model_validator(mode="after")
    def _policy_gradient_has_draws(self) -> DistillRecipe:
        if self.rollouts is None or not self.method.needs_scores:
            return self
        name, policy = self.method.method_name(), self.rollouts
        if not policy.draws_from_student:
            raise ValueError(
                f"'{name}' needs tokens sampled from the student, and '{policy.method_name()}' "
                "selects among them: use rollouts on_policy or mixed_sampling"
            )
        if self.method.ce_weight == 0 and policy.uses_other_text:
            raise ValueError(
                f"'{name}' has no loss on text not generated by the student: set "
                "method.ce_weight, or rollouts.student_share to 1 and rollouts.warm_up to 0"
            )
        return self
