"""Steps that all trainers share: load the student, train it, and publish it with its evaluation.

A trainer is one function, the whole story of its kind of job: load the teacher, prepare records and
targets, build the loss, train, evaluate. What several need are the functions here, in
``stored_targets`` and in ``rollouts``; those with one local teacher begin with
``start_distillation``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.writer import check_links
from stillroom.distill.data.preparation import (
    PreparedData,
    list_generator_parents,
    make_record_source,
    prepare_data,
)
from stillroom.distill.data.tokenized import Batch, TokenizedRecord, make_batch
from stillroom.distill.evaluator import FidelityEvaluator, TrainedStudent
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.output import (
    ADAPTER,
    choose_candidate_steps,
    finish_card,
    list_parents,
    make_candidate_writer,
    make_student_origin,
    warn_about_teachers,
    write_adapter,
    write_student,
)
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.jobs import Job
from stillroom.jobs.preflight import PreflightFinding, PreflightReport
from stillroom.models import load_causal_lm
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact
from stillroom.records import Record
from stillroom.train.data import BatchSource, RecordSource, RecordSplit, split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import Objective, train
from stillroom.train.lora import add_lora
from stillroom.train.precision import choose_precision

if TYPE_CHECKING:
    from stillroom.distill.recipes import LocalTeacherRecipe, TrainingRecipe

__all__ = [
    "CLOSING",
    "DistillationContext",
    "DistillationStart",
    "evaluate_start",
    "finish_student",
    "load_student",
    "make_batch_source",
    "start_distillation",
    "train_student",
]

CLOSING = "`fidelity.html` says how near it is to its teacher on held-out records."
"""Text of the model card on the folder's other files, if the student was evaluated."""


@dataclass(frozen=True)
class DistillationContext:
    """A student to train, with its records."""

    recipe: TrainingRecipe
    job: Job
    start: Path
    student: nn.Module
    tokenizer: Any
    records: Sequence[Record]
    tokenized: Sequence[TokenizedRecord]
    rows: int
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

    def with_lora(self) -> DistillationContext:
        """Return the context with low-rank layers added to the student, if the recipe has some."""
        lora = self.recipe.train.lora
        if lora is None:
            return self
        return replace(self, student=add_lora(self.student, lora, self.recipe.seed))


def load_student(
    recipe: TrainingRecipe,
    job: Job,
    ranks: ProcessGroup,
    start: Path,
    data: PreparedData,
    split: RecordSplit,
    count_rows: Callable[[Any, Any], int],
) -> DistillationContext:
    """Load the initial student for training.

    Args:
        recipe: Settings of the training.
        job: Progress, journals and scratch files.
        ranks: Process group.
        start: Checkpoint of the initial student.
        data: Training data.
        split: Training and held-out records.
        count_rows: Returns the size of the vocabulary in use, given the student and its tokenizer;
            rejects an incompatible student.

    Raises:
        CheckpointError: If the vocabularies of teacher and student differ and must not.
    """
    student, tokenizer = load_causal_lm(start, dtype="float32")
    rows = ranks.on_main(partial(count_rows, student, tokenizer))
    return DistillationContext(
        recipe,
        job,
        start,
        student,
        tokenizer,
        data.records,
        data.tokenized,
        rows,
        split.held_out,
        ranks,
    )


@dataclass(frozen=True)
class DistillationStart:
    """What a trainer with one local teacher has before the first step.

    ``details`` are those of the initial student and of the teacher, for artifact.json.
    """

    teacher: LocalTeacher
    data: PreparedData
    evaluator: FidelityEvaluator
    details: Mapping[str, Any]


def start_distillation(
    recipe: LocalTeacherRecipe,
    job: Job,
    ranks: ProcessGroup,
    preflight: PreflightReport,
) -> tuple[DistillationStart, DistillationContext]:
    """Find the teacher, prepare records and student, and measure both models before training.

    Raises:
        DataError: If no training data remains.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
    """
    teacher = LocalTeacher.find(recipe.teacher, job)
    warn_about_teachers([teacher], job)
    split = split_records(resolve_local(recipe.records))
    data = ranks.on_main(lambda: prepare_data(recipe, split, teacher.tokenizer, job))
    start, details = ranks.on_main(
        lambda: prepare_student(recipe.student, job, teacher, data.tokenized)
    )
    student = load_student(
        recipe, job, ranks, start, data, split, partial(count_shared_rows, teacher)
    )
    evaluator = FidelityEvaluator(
        recipe,
        job,
        split,
        teacher.tokenizer,
        [teacher],
        recipe.method.method_name(),
        is_compared=True,
    )
    evaluate_start(evaluator, student, preflight)
    details = {**details, **teacher.describe()}
    return DistillationStart(teacher, data, evaluator, details), student


def evaluate_start(
    evaluator: FidelityEvaluator, context: DistillationContext, preflight: PreflightReport
) -> None:
    """Measure teacher and untrained student, and add the finding to the preflight report."""
    finding: PreflightFinding | None = context.ranks.on_main(
        partial(evaluator.evaluate_start, context.student)
    )
    if finding is None:
        return
    preflight.findings.append(finding)
    preflight.write(context.job.work)
    PreflightReport([finding]).log(context.job)


def make_batch_source(
    context: DistillationContext, cache: LogitCache | None = None
) -> RecordSource[TokenizedRecord, Batch]:
    """Return the batch source of the records, with targets from a cache if there is one."""
    records, device = context.tokenized, context.device

    def load(records: Sequence[TokenizedRecord]) -> Batch:
        teacher_records = [record.teacher_view for record in records]
        return make_batch(records, cache.target(teacher_records, device) if cache else None, device)

    return make_record_source(
        context.recipe, records, records, load, [record.name for record in records]
    )


def train_student(
    context: DistillationContext,
    source: BatchSource[Any],
    objective: Objective[Any],
    card: Mapping[str, Any],
    closing: str = CLOSING,
    auxiliary: nn.Module | None = None,
) -> TrainedStudent:
    """Train the student, write it and its candidates, and return the result.

    Args:
        context: Student, including low-rank layers.
        source: Source of micro-batches.
        objective: Loss of a micro-batch.
        card: Model card of the job's checkpoints.
        closing: Text of the model card on ``fidelity.html``, if the student is evaluated.
        auxiliary: Module trained with the student and saved in the training state, but not in
            checkpoints.

    Raises:
        DataError: If a loss or gradient is not finite.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    recipe, job, ranks, start = context.recipe, context.job, context.ranks, context.start
    check_links(start)
    count = recipe.train.count_steps(len(context.tokenized))
    steps = choose_candidate_steps(count, recipe.keep_checkpoints)
    summary = train(
        context.student,
        source,
        objective,
        recipe.train,
        job,
        seed=recipe.seed,
        on_step=make_candidate_writer(
            job.output, start, steps, recipe.output, dict(card), writes=ranks.is_main
        ),
        auxiliary=auxiliary,
        ranks=ranks,
    )
    if not getattr(source, "has_generated", True):
        note = "No step used generated text."
        job.warn(f"{note} The student was trained on records only")
        card = {**card, "body": f"{card['body']}{note} "}
    if not summary.had_gradient:
        warning = "**The gradient was zero in every step: nothing was learned.**"
        card = {**card, "body": f"{warning} {card['body']}"}
    is_measured = bool(recipe.fidelity.records and context.held_out)
    unchanged: list[str] = []
    fingerprint = write_student(
        context.student,
        job.output,
        start,
        recipe.output,
        finish_card(card, closing, measured=is_measured, candidates=len(steps)),
        in_place=True,
        writes=ranks.is_main,
        warn=unchanged.append,
    )
    details: dict[str, Any] = {"train": asdict(summary), "fingerprint": fingerprint}
    if unchanged:
        job.warn(unchanged[0])
        details["unchanged"] = True
    lora = recipe.train.lora
    if lora is not None and lora.keep_adapter:
        base, folder = str(recipe.student), job.output / ADAPTER
        write_adapter(context.student, folder, base, writes=ranks.is_main)
        base_fingerprint = Checkpoint.open(start).fingerprint
        details["adapter"] = {"folder": ADAPTER, "base": base_fingerprint}
    return TrainedStudent(start, context.tokenized, context.rows, summary, dict(card), details)


def finish_student(
    evaluator: FidelityEvaluator,
    trained: TrainedStudent,
    data: PreparedData,
    *,
    method: str,
    details: Mapping[str, Any],
    fidelity_key: str = "fidelity",
) -> Artifact:
    """Evaluate the written student, and publish the artifact.

    Args:
        evaluator: Evaluator of the job.
        trained: Result of the training; the student in memory has been released.
        data: Training data.
        method: Name of the method in the student's origin.
        details: Details of teachers and targets for artifact.json.
        fidelity_key: Key of the evaluation in artifact.json.
    """
    recipe, job, teachers = evaluator.recipe, evaluator.job, evaluator.teachers
    fidelity = evaluator.evaluate_student(trained)
    student = recipe.student if isinstance(recipe.student, str) else None
    return job.finish(
        "checkpoint",
        parents=[
            *list_parents(recipe.records, job, teachers, student=student),
            *list_generator_parents(recipe),
        ],
        origin=make_student_origin(method, teachers, data.records, student).to_json(),
        details={
            "records": data.counts,
            **details,
            **trained.details,
            "parameters": Checkpoint.open(job.output).parameters,
            fidelity_key: fidelity,
        },
    )
