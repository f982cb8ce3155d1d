"""Base class of trainers, their context, and the parts that trainers share.

One orchestration (``run``) drives all of them: prepare the records, collect the teacher's targets,
train the student, evaluate. A trainer implements these stages for its kind of teacher; the training
loop is ``train`` and the measurements are made by ``FidelityEvaluator``.

``TrainingSetup`` holds the inputs of the training loop: a batch source and a loss function. The
recipe selects which one is opened, each by a function of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.preparation import PreparedData, make_record_source, prepare_data
from stillroom.distill.data.tokenized import Batch, TokenizedRecord, make_batch
from stillroom.distill.evaluation.metrics import RecordMetrics
from stillroom.distill.evaluation.teacher_distance import TeacherReference
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.divergence import missing_rollouts_error
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teachers.endpoint import TextOnlyTeacher
from stillroom.distill.teachers.ensemble import AnyTeacher, WeightedTeacher, require_local
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.distill.trainers.features import FeatureSet
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint
from stillroom.records import Record
from stillroom.train.data import BatchSource, RecordSource, RecordSplit
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import Objective
from stillroom.train.precision import autocast_body, choose_precision

__all__ = [
    "DistillationContext",
    "DistillationTrainer",
    "TrainingSetup",
    "check_rollouts_present",
    "make_batch_source",
    "make_live_loss",
    "make_text_training",
]


@dataclass
class DistillationTrainer(ABC):
    """Stages of a job that depend on its kind of teacher.

    Args:
        recipe: Recipe of the job.
        job: Progress, journals and scratch files.
        weighted_teachers: Teachers with their weights, at least one.
    """

    recipe: DistillRecipe
    job: Job
    weighted_teachers: list[WeightedTeacher]

    closing: ClassVar[str] = (
        "`fidelity.html` says how near it is to its teacher on held-out records."
    )
    """Text of the model card on the folder's other files, if the student was evaluated."""
    fidelity_key: ClassVar[str] = "fidelity"
    """Key of the evaluation in artifact.json."""

    @property
    def teachers(self) -> Sequence[AnyTeacher | TextOnlyTeacher]:
        """Teachers, in order."""
        return [weighted.teacher for weighted in self.weighted_teachers]

    @property
    def first(self) -> AnyTeacher:
        """First teacher, whose tokenizer and template are shared by all."""
        return self.weighted_teachers[0].teacher

    @property
    def loss(self) -> str:
        """Name of the loss in the recipe."""
        return self.recipe.method.method_name()

    @property
    def method(self) -> str:
        """Name of the method in the student's origin."""
        if not self.recipe.method.kd_weight:
            return "distill.cross_entropy"
        return f"distill.methods.{self.loss}"

    @property
    def measured_teacher(self) -> LocalTeacher | None:
        """The teacher, if it is a single local one, which is then evaluated like the student."""
        (first, *others) = self.teachers
        return first if isinstance(first, LocalTeacher) and not others else None

    @property
    def is_compared(self) -> bool:
        """Whether models are compared with that teacher by full distributions."""
        return False

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the student."""
        return self.first.tokenizer

    def prepare(self, split: RecordSplit) -> PreparedData:
        """Return the training data.

        Raises:
            DataError: If no training data remains.
        """
        return prepare_data(self.recipe, split, self.tokenizer, self.job)

    def start(self, prepared: PreparedData) -> tuple[Path, dict[str, Any]]:
        """Return the folder of the initial student, and its details for artifact.json.

        Raises:
            CheckpointError: If a checkpoint cannot be read, or its architecture is not supported.
            RecipeError: If the teacher cannot be pruned to such a student.
        """
        student = self.recipe.student
        if isinstance(student, str):
            path = resolve_checkpoint(student, say=self.job.say)
            return Checkpoint.open(path).folder, {"layers_kept": []}
        return prepare_student(student, self.job, require_local(self.first), prepared.tokenized)

    @abstractmethod
    def check_compatibility(self, student: Any, tokenizer: Any) -> int:
        """Return the size of the shared vocabulary; reject an incompatible student.

        Raises:
            CheckpointError: If the vocabularies differ and must not.
        """

    @contextmanager
    def collect_targets(self, context: DistillationContext) -> Iterator[list[TeacherReference]]:
        """Store the outputs of teachers before training; yield references for evaluation.

        Raises:
            BackendError: If an endpoint cannot be reached or returns too little.
            Cancelled: If cancellation was requested; stored outputs are kept.
        """
        yield []

    @abstractmethod
    def build_training(self, context: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        """Open the inputs of the training loop; called within ``collect_targets``."""

    def metadata(self) -> Mapping[str, Any]:
        """Return details of teachers and loss for artifact.json, beyond the common ones."""
        return {}

    def report(self, metrics: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        """Return the content of fidelity.json that depends on the kind of teacher.

        Args:
            metrics: Metrics by model, one per reference.
        """
        return {}


@dataclass(frozen=True)
class DistillationContext:
    """Inputs of every training setup.

    Args:
        recipe: Recipe of the job.
        job: Progress, journals and scratch files.
        teacher: Local teacher, loaded on first use and unloaded when no longer needed, or a teacher
            behind an endpoint.
        student: Model to train, on its device, including LoRA layers.
        tokenizer: Tokenizer of the student.
        records: Training records.
        tokenized: Tokenized training records.
        rows: Size of the vocabulary shared by teacher and student.
        start: Fingerprint of the initial student's checkpoint.
        held_out: Held-out records.
        ranks: Process group.
    """

    recipe: DistillRecipe
    job: Job
    teacher: AnyTeacher | TextOnlyTeacher
    student: nn.Module
    tokenizer: Any
    records: Sequence[Record]
    tokenized: Sequence[TokenizedRecord]
    rows: int
    start: str = ""
    held_out: Sequence[Record] = ()
    ranks: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def device(self) -> torch.device:
        """Device of the student."""
        return next(self.student.parameters()).device

    @cached_property
    def precision(self) -> str:
        """Precision of matrix products: ``float32`` or ``bfloat16``."""
        return choose_precision(self.recipe.train.precision, self.device)


@dataclass(frozen=True)
class TrainingSetup:
    """Inputs of the training loop, and details for artifact.json.

    ``auxiliary`` is trained with the student and saved in the training state, but not in
    checkpoints.
    """

    source: BatchSource[Any]
    objective: Objective[Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: nn.Module | None = None


def check_rollouts_present(recipe: DistillRecipe) -> None:
    """Reject a method that requires rollouts in a recipe without any.

    Raises:
        RecipeError: If the method needs rollouts and the recipe has none.
    """
    if recipe.method.needs_rollouts and recipe.rollouts is None:
        raise missing_rollouts_error(recipe.method)


def make_text_training(context: DistillationContext) -> TrainingSetup:
    """Return the setup of training on text only, without a teacher."""
    objective = DistillationLoss(
        context.recipe.method, rows=context.rows, precision=context.precision
    )
    return TrainingSetup(make_batch_source(context, None), objective, {"cache": None})


def make_live_loss(context: DistillationContext) -> DistillationLoss:
    """Return the loss with the teacher run in every step, including features."""
    teacher, recipe = require_local(context.teacher).in_precision(context.precision), context.recipe
    features = None
    if recipe.features:
        with autocast_body(context.precision, context.device):
            features = FeatureSet(recipe.features, context.student, teacher, seed=recipe.seed)
    return DistillationLoss(
        recipe.method,
        rows=context.rows,
        precision=context.precision,
        teacher=teacher,
        features=features,
    )


def make_batch_source(
    context: DistillationContext, cache: LogitCache | None
) -> RecordSource[TokenizedRecord, Batch]:
    """Return the batch source of the records, with targets from a cache if there is one."""
    records, device = context.tokenized, context.device

    def load(records: Sequence[TokenizedRecord]) -> Batch:
        teacher_records = [record.teacher_view for record in records]
        return make_batch(records, cache.target(teacher_records, device) if cache else None, device)

    return make_record_source(
        context.recipe, records, records, load, [record.name for record in records]
    )
