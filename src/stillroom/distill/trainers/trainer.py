"""Base class of trainers, their context, and the parts that trainers share.

One orchestration (``run``) goes through all of them: records become lessons, the teacher is heard,
the student learns by a course, and everything is measured by one examiner. A lane says how each of
these is done with its kind of teacher; it trains and measures nothing itself.

A course is what the training loop is given: which micro-batches there are, and their loss. The
recipe decides which one is opened; each lives in a function of its own and is all that knows it.
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
    """The parts of a job that its kind of teacher decides.

    Args:
        recipe: Of the job.
        job: For progress, journals and scratch files.
        chairs: The teachers, at least one, with their shares.
    """

    recipe: DistillRecipe
    job: Job
    chairs: list[WeightedTeacher]

    closing: ClassVar[str] = (
        "`fidelity.html` says how near it is to its teacher on held-out records."
    )
    """What the student's card says of the folder's other files, where something was measured."""
    fidelity_key: ClassVar[str] = "fidelity"
    """Under which name artifact.json keeps what was measured."""

    @property
    def teachers(self) -> Sequence[AnyTeacher | TextOnlyTeacher]:
        """The teachers, in order."""
        return [chair.teacher for chair in self.chairs]

    @property
    def first(self) -> AnyTeacher:
        """The first teacher, whose tokenizer and template all share."""
        return self.chairs[0].teacher

    @property
    def loss(self) -> str:
        """What is lowered, in the recipe's words."""
        return self.recipe.method.method_name()

    @property
    def method(self) -> str:
        """What the student's origin names."""
        if not self.recipe.method.kd_weight:
            return "distill.cross_entropy"
        return f"distill.methods.{self.loss}"

    @property
    def measured_teacher(self) -> LocalTeacher | None:
        """The one teacher in this process, who is measured as the student is."""
        (first, *others) = self.teachers
        return first if isinstance(first, LocalTeacher) and not others else None

    @property
    def is_compared(self) -> bool:
        """Whether students are compared with that teacher by whole distributions."""
        return False

    @property
    def tokenizer(self) -> Any:
        """The student's."""
        return self.first.tokenizer

    def prepare(self, split: RecordSplit) -> PreparedData:
        """Return what is learned from.

        Raises:
            DataError: If nothing is left to learn from.
        """
        return prepare_data(self.recipe, split, self.tokenizer, self.job)

    def start(self, prepared: PreparedData) -> tuple[Path, dict[str, Any]]:
        """Return the folder that the student starts from, and what artifact.json says of it.

        Raises:
            CheckpointError: If a checkpoint cannot be read, or the teacher is not understood.
            RecipeError: If the teacher cannot give such a student.
        """
        student = self.recipe.student
        if isinstance(student, str):
            path = resolve_checkpoint(student, say=self.job.say)
            return Checkpoint.open(path).folder, {"layers_kept": []}
        return prepare_student(student, self.job, require_local(self.first), prepared.lessons)

    @abstractmethod
    def admit(self, student: Any, tokenizer: Any) -> int:
        """Return how many tokens all sides share; refuse a student that cannot learn from these.

        Raises:
            CheckpointError: If the vocabularies differ where they must not.
        """

    @contextmanager
    def hear(self, room: DistillationContext) -> Iterator[list[TeacherReference]]:
        """Ask teachers that are not here when they are needed; yield how far from them is measured.

        Raises:
            BackendError: If a server cannot be reached or tells too little.
            Cancelled: If the user asked for it; what was heard is kept.
        """
        yield []

    @abstractmethod
    def course(self, room: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        """Prepare what the training loop is given; open within ``hear``."""

    def describe(self) -> Mapping[str, Any]:
        """Return what artifact.json says of teachers and loss, beside what every lane says."""
        return {}

    def report(self, found: Mapping[str, Sequence[RecordMetrics[Any]]]) -> Mapping[str, Any]:
        """Return what fidelity.json says of its own kind.

        Args:
            found: By side, one figure a yardstick.
        """
        return {}


@dataclass(frozen=True)
class DistillationContext:
    """What every course is given.

    Args:
        recipe: Of the job.
        job: For progress, journals and scratch files.
        teacher: Loaded on first use; a course that needs it no more unloads it. One behind a server
            is asked instead.
        student: The model to train, on its device, LoRA layers included.
        tokenizer: The student's.
        records: Those to learn from.
        lessons: The same as tokens.
        rows: Tokens of the vocabulary that teacher and student share.
        start: Fingerprint of the checkpoint that the student starts from.
        held_out: Records that are measured on only.
        ranks: The processes that teach together.
    """

    recipe: DistillRecipe
    job: Job
    teacher: AnyTeacher | TextOnlyTeacher
    student: nn.Module
    tokenizer: Any
    records: Sequence[Record]
    lessons: Sequence[TokenizedRecord]
    rows: int
    start: str = ""
    held_out: Sequence[Record] = ()
    ranks: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device

    @cached_property
    def precision(self) -> str:
        """Of the matrix products: ``float32`` or ``bfloat16``."""
        return choose_precision(self.recipe.train.precision, self.device)


@dataclass(frozen=True)
class TrainingSetup:
    """What the training loop is given, and what artifact.json keeps of it under its keys.

    ``beside`` is trained with the student and saved for a resumed run, and written nowhere else.
    """

    source: BatchSource[Any]
    objective: Objective[Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    beside: nn.Module | None = None


def check_rollouts_present(recipe: DistillRecipe) -> None:
    """Refuse what no course can teach, before anything is loaded.

    Raises:
        RecipeError: If the method needs rollouts and the recipe has none.
    """
    if recipe.method.needs_rollouts and recipe.rollouts is None:
        raise missing_rollouts_error(recipe.method)


def make_text_training(room: DistillationContext) -> TrainingSetup:
    """Return the course of a student that learns the text alone: no teacher is asked."""
    objective = DistillationLoss(room.recipe.method, rows=room.rows, precision=room.precision)
    return TrainingSetup(make_batch_source(room, None), objective, {"cache": None})


def make_live_loss(room: DistillationContext) -> DistillationLoss:
    """Return the loss with the teacher run in every step, features included."""
    teacher, recipe = require_local(room.teacher).lowered(room.precision), room.recipe
    features = None
    if recipe.features:
        with autocast_body(room.precision, room.device):
            features = FeatureSet(recipe.features, room.student, teacher, seed=recipe.seed)
    return DistillationLoss(
        recipe.method,
        rows=room.rows,
        precision=room.precision,
        teacher=teacher,
        features=features,
    )


def make_batch_source(
    room: DistillationContext, cache: LogitCache | None
) -> RecordSource[TokenizedRecord, Batch]:
    """Return the micro-batches of the lessons, with targets from a cache if there is one."""
    lessons, device = room.lessons, room.device

    def load(chosen: Sequence[TokenizedRecord]) -> Batch:
        heard = [lesson.by_teacher for lesson in chosen]
        return make_batch(chosen, cache.target(heard, device) if cache else None, device)

    return make_record_source(room.recipe, lessons, lessons, load, [one.name for one in lessons])
