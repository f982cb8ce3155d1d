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
    """In which form the teacher's distributions are kept."""

    mode: TargetMode = Field(
        default="top_k",
        description="top_k: the likeliest tokens and the mass of the rest; sampled: tokens drawn "
        "from the teacher, unbiased; dense: the whole vocabulary, on disk; live: nothing is kept, "
        "the teacher runs in every step",
    )
    k: int = Field(default=64, ge=1, le=4096, description="tokens a position in mode top_k")
    samples: int = Field(
        default=12,
        ge=1,
        le=4096,
        description="tokens drawn a position in mode sampled, all of them distinct",
    )
    sampling_temperature: float = Field(
        default=1.0,
        gt=0,
        description="mode sampled draws from the teacher's probabilities to the power of 1 over "
        "this; weights make up for it",
    )
    logprob_dtype: Literal["float16", "float32"] = Field(
        default="float16", description="type that cached log-probabilities are stored in"
    )
    cache: str | None = Field(
        default=None,
        description="folder of a teacher cache that several jobs share; null keeps it in the job",
    )


class FidelitySettings(Settings):
    """How the distance to the teacher is measured, and what the student is compared with."""

    records: int = Field(
        default=32,
        ge=0,
        description="held-out records measured, the first ones; 0 measures nothing, nor speed",
    )
    control: bool = Field(
        default=True,
        description="train a control on the records' own tokens alone, with the same start, "
        "records, steps and seed, and measure it beside the student",
    )
    keep_control: bool = Field(
        default=False, description="keep the control's checkpoint in output/control"
    )
    answers: int = Field(
        default=16,
        ge=0,
        description="of those records, how many are answered by teacher, student and control; "
        "0 leaves out what is measured on models' own text",
    )
    max_new_tokens: int = Field(
        default=48, ge=1, le=4096, description="longest answer that is measured, in tokens"
    )
    speed: bool = Field(
        default=True, description="measure latency and peak memory of teacher and student"
    )


class StudentOutputSettings(Settings):
    """How checkpoints are written."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="storage type of the weights"
    )
    shard_size: Size = Field(
        default=5_000_000_000, gt=0, description="most bytes of one weights file"
    )


class DistillRecipe(Recipe):
    """Teach a smaller student the teacher's distributions on your records."""

    kind: Literal["distill"] = Field(default="distill", description="teach a student")
    teacher: TeacherChoice = Field(
        examples=["path/to/teacher"],
        description="the checkpoint to learn from; or a server, {endpoint: ..., tokenizer: ...}; "
        "or several, each {teacher: ..., weight: ..., source: ...}",
    )
    source_field: str = Field(
        default="source",
        description="field of a record that chooses its teacher, where teachers have a source; "
        "origin is what the record's origin says",
    )
    records: Reference = Field(
        description="a records artifact or file; those with fields.split 'held_out' only validate"
    )
    student: PruneSettings | Reference = Field(
        default_factory=PruneSettings,
        description="how to make the student from the teacher, or a checkpoint to start from",
    )
    method: Annotated[DistillationObjective, METHODS.choice()] = Field(
        default_factory=lambda: METHODS.build("forward_kl"),
        description="the divergence to lower, with its settings",
    )
    crossing: Annotated[CrossTokenizerLoss, CROSS_TOKENIZER_LOSSES.choice()] | None = Field(
        default=None,
        description="the loss where teacher and student have different tokenizers, in place of "
        "method; null requires one tokenizer",
    )
    features: tuple[Annotated[FeatureLoss, FEATURE_LOSSES.choice()], ...] = Field(
        default=(),
        description="losses on what happens inside both, beside the divergence; they need "
        "targets.mode live",
    )
    targets: TargetSettings = Field(
        default_factory=TargetSettings, description="what is kept of the teacher"
    )
    sequence: SequenceSettings | None = Field(
        default=None,
        description="let the teacher, or any other model, write the answers; null keeps them",
    )
    rationale: RationaleSettings | None = Field(
        default=None, description="learn rationales beside the answers; null learns answers alone"
    )
    context: TeacherContextSettings | None = Field(
        default=None,
        description="what the teacher reads before the question and the student does not",
    )
    rollouts: Annotated[RolloutPolicy, ROLLOUT_POLICIES.choice()] | None = Field(
        default=None,
        description="who writes text to learn on besides the records; null learns from records "
        "alone",
    )
    train: TrainSettings = Field(
        default_factory=TrainSettings, description="optimizer, schedule, batch"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="tokens of a record; what is longer is cut and counted"
    )
    include_prompt: bool = Field(
        default=True, description="learn the teacher's distributions on the prompt's tokens too"
    )
    candidates: int = Field(
        default=2, ge=0, description="checkpoints kept from the second half of the run, for merging"
    )
    fidelity: FidelitySettings = Field(
        default_factory=FidelitySettings, description="what is measured, before and after"
    )
    out: StudentOutputSettings = Field(
        default_factory=StudentOutputSettings, description="how checkpoints are written"
    )

    @model_validator(mode="after")
    def _method_takes_targets(self) -> DistillRecipe:
        if self.targets.mode == "sampled" and not self.method.takes_samples:
            raise ValueError(
                f"method '{self.method.method_name()}' cannot learn from targets.mode 'sampled'; "
                "use method forward_kl, or targets.mode top_k"
            )
        return self

    @model_validator(mode="after")
    def _context_hides_prompts(self) -> DistillRecipe:
        if self.context is not None and self.include_prompt:
            raise ValueError(
                "'context' compares the assistant's tokens alone; set include_prompt: false"
            )
        return self

    @model_validator(mode="after")
    def _crossing_takes_the_place_of_method(self) -> DistillRecipe:
        if self.crossing is None:
            return self
        if not isinstance(self.student, str):
            raise ValueError(
                "with 'crossing', 'student' must be a checkpoint with a tokenizer of its own: a "
                "student made from the teacher has the teacher's"
            )
        if self.method != METHODS.build("forward_kl"):
            raise ValueError(
                "'method' compares one vocabulary and 'crossing' two: give one of them; "
                "the crossing has kd_weight and ce_weight of its own"
            )
        if self.targets.model_copy(update={"cache": None}) != TargetSettings():
            raise ValueError("with 'crossing', of 'targets' only 'cache' means anything")
        if self.rationale is not None and self.rationale.weight != 1:
            raise ValueError("with 'crossing' all records weigh alike: leave rationale.weight at 1")
        return self

    @model_validator(mode="after")
    def _rollouts_need_the_whole_student(self) -> DistillRecipe:
        if self.rollouts is not None and self.train.sharding != "none":
            raise ValueError(
                "'rollouts' are written by the whole student, and train.sharding keeps a share of "
                "it in each process; set train.sharding: none"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> DistillRecipe:
        lora = self.train.lora
        if lora is not None and lora.keep_adapter and not isinstance(self.student, str):
            raise ValueError(
                "train.lora.keep_adapter wants 'student' to be a checkpoint: what is made from the "
                "teacher for this job alone stands nowhere that an adapter could be added to"
            )
        return self

    @model_validator(mode="after")
    def _features_need_the_teacher(self) -> DistillRecipe:
        if self.features and (self.context is not None or self.crossing is not None):
            other = "crossing" if self.crossing is not None else "context"
            raise ValueError(
                f"features compare both at the same tokens, and with '{other}' the teacher reads "
                "others; leave one of the two out"
            )
        if self.features and not isinstance(self.teacher, str):
            raise ValueError(
                "'features' look inside one teacher while it runs: a server shows nothing of it, "
                "and several would all be in memory in every step"
            )
        if self.features and self.targets.mode != "live":
            raise ValueError(
                f"features look into the teacher while it runs, and targets.mode "
                f"'{self.targets.mode}' keeps only its words; set targets.mode: live"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_have_a_teacher(self) -> DistillRecipe:
        policy, is_served = self.rollouts, isinstance(self.teacher, EndpointTeacherSettings)
        if policy is None:
            return self
        if isinstance(self.teacher, tuple):
            raise ValueError(
                "'rollouts' take one teacher: several would all be in memory in every step"
            )
        if is_served and policy.may_need_teacher:
            raise ValueError(
                f"rollouts '{policy.method_name()}' need the teacher while text is written, token "
                "by token, and a server scores finished text: use on_policy with rest: records, "
                "or replay"
            )
        if self.crossing is not None and policy.may_need_teacher:
            raise ValueError(
                f"rollouts '{policy.method_name()}' have the teacher write too, and its tokens are "
                "not the student's: use on_policy with rest: records, or replay"
            )
        if not is_served and self.crossing is None and self.targets.mode != "live":
            raise ValueError(
                f"targets.mode '{self.targets.mode}' keeps what the teacher says of the records; "
                "rollouts are new text: set targets.mode to live"
            )
        for name in ("context", "rationale"):
            if getattr(self, name) is not None:
                raise ValueError(f"'rollouts' and '{name}' cannot be combined: leave one out")
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
                "a teacher behind a server has no layers to take: 'student' must be a checkpoint"
            )
        if isinstance(self.teacher, tuple) and self.crossing is not None:
            raise ValueError("'crossing' takes one teacher: several need one vocabulary")
        self._refuse_targets()
        self._refuse_writers()
        return self

    @property
    def teacher_only_writes(self) -> bool:
        """Whether text is all that is learned of the teacher: a server without a tokenizer."""
        return isinstance(self.teacher, EndpointTeacherSettings) and self.teacher.tokenizer is None

    @model_validator(mode="after")
    def _writers_write(self) -> DistillRecipe:
        shares = self.teacher if isinstance(self.teacher, tuple) else ()
        for share in shares:
            if (
                isinstance(share.teacher, EndpointTeacherSettings)
                and share.teacher.tokenizer is None
            ):
                raise ValueError("among several teachers a server needs its 'tokenizer'")
        if not self.teacher_only_writes:
            return self
        asks = {
            "crossing": self.crossing is not None,
            "rollouts": self.rollouts is not None,
            "context": self.context is not None,
            f"method.kd_weight {self.method.kd_weight:g}": self.method.kd_weight > 0,
        }
        asked = [name for name, is_set in asks.items() if is_set]
        if asked:
            raise ValueError(
                "a server without 'tokenizer' is asked for text alone, and these need its "
                f"log-probabilities: {', '.join(asked)}. Name teacher.tokenizer, or learn the text "
                "alone: method: {name: forward_kl, kd_weight: 0, ce_weight: 1}"
            )
        has_writer = self.rationale is not None and self.rationale.write is not None
        if self.sequence is None and not has_writer:
            raise ValueError(
                "nothing would be learned from a server without 'tokenizer': add 'sequence', or "
                "'rationale' with 'write'"
            )
        return self

    def _refuse_targets(self) -> None:
        """Refuse targets that a server cannot tell, or several teachers cannot keep."""
        mode = self.targets.mode
        shares = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        served = [
            isinstance(getattr(one, "teacher", one), EndpointTeacherSettings) for one in shares
        ]
        if self.crossing is None and (mode == "live" or (mode == "dense" and any(served))):
            raise ValueError(
                f"targets.mode '{mode}' takes a teacher in this process, and live only one: use "
                "top_k"
            )

    def _refuse_writers(self) -> None:
        """Refuse several teachers where none is named that writes."""
        writers: dict[str, GenerationSettings | None] = {"sequence": self.sequence}
        if self.rationale is not None:
            writers["rationale.write"] = self.rationale.write
        for name, settings in writers.items():
            if isinstance(self.teacher, tuple) and settings is not None and not settings.model:
                raise ValueError(f"several teachers: name the one that writes as {name}.model")

    @model_validator(mode="after")
    def _verifiers_can_judge(self) -> DistillRecipe:
        if self.sequence is None:
            return self
        is_served = (
            isinstance(self.teacher, EndpointTeacherSettings) and self.sequence.model is None
        )
        names = [one.method_name() for one in self.sequence.verifiers if one.needs_scores]
        if names and (is_served or str(self.sequence.model).startswith(("http://", "https://"))):
            raise ValueError(
                f"sequence.verifiers '{names[0]}' asks the writer how likely it finds a text, and "
                "a server does not tell: set verifiers: [agreement], or attempts: 1 and "
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
                f"'{name}' needs tokens drawn from the student, and '{policy.method_name()}' "
                "chooses among them: use rollouts on_policy or mixed_sampling"
            )
        if self.method.ce_weight == 0 and policy.learns_from_others:
            raise ValueError(
                f"'{name}' learns nothing from text that the student did not write: set "
                "method.ce_weight, or rollouts.student_share to 1 and rollouts.warm_up to 0"
            )
        return self
