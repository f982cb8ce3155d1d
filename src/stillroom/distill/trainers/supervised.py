"""Supervised fine-tuning (SFT) on text: labels, or completions and rationales of a model.

Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947), without the teacher's
distributions: cross-entropy with the records' tokens. A local teacher may be pruned to the student,
which is compared with it; a teacher behind an endpoint only generates.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.preparation import prepare_data
from stillroom.distill.evaluator import FidelityEvaluator
from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.output import describe_objective, make_student_card, warn_about_teachers
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.teachers.endpoint import TextOnlyTeacher
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.distill.trainers.student import (
    CLOSING,
    evaluate_start,
    finish_student,
    load_student,
    make_batch_source,
    train_student,
)
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.objects import resolve_local
from stillroom.train.data import split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.supervised import SupervisedRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_on_text"]

_GENERATED_CLOSING = (
    "It learned text that its teacher wrote: `written.jsonl`. `fidelity.html` says how well it "
    "does on held-out records."
)


def train_on_text(recipe: SupervisedRecipe, job: Job, preflight: PreflightReport) -> Artifact:
    """Train a student on text by cross-entropy.

    Raises:
        DataError: If no training data remains, or too little text was generated.
        BackendError: If a generating model fails.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    method = METHODS.build({"name": "forward_kl", "kd_weight": 0, "ce_weight": 1})
    with ProcessGroup() as ranks, limit_threads(recipe.train.threads):
        teacher = _open_teacher(recipe, job)
        warn_about_teachers([teacher], job)
        is_local = isinstance(teacher, LocalTeacher)
        tokenizer = _load_tokenizer(recipe, teacher, job)
        split = split_records(resolve_local(recipe.records))
        data = ranks.on_main(lambda: prepare_data(recipe, split, tokenizer, job))
        start, details = ranks.on_main(
            lambda: prepare_student(recipe.student, job, teacher, data.tokenized)
        )
        context = load_student(
            recipe, job, ranks, start, data, split, partial(_count_rows, teacher)
        )
        evaluator = FidelityEvaluator(
            recipe,
            job,
            split,
            tokenizer,
            [teacher],
            "cross-entropy",
            is_compared=is_local,
            report=lambda metrics: {"kind": "sequence"},
        )
        evaluate_start(evaluator, context, preflight)
        card = make_student_card(recipe, [teacher], data, describe_objective(method))
        context = context.with_lora()
        loss = DistillationLoss(method, rows=context.rows, precision=context.precision)
        source, closing = make_batch_source(context), CLOSING if is_local else _GENERATED_CLOSING
        trained = train_student(context, source, loss, card, closing)
        del context, source
        return ranks.on_main(
            lambda: finish_student(
                evaluator,
                trained,
                data,
                method="distill.cross_entropy",
                details={**details, **_describe_teacher(teacher)},
            )
        )


def _open_teacher(recipe: SupervisedRecipe, job: Job) -> LocalTeacher | TextOnlyTeacher:
    if isinstance(recipe.teacher, str):
        return LocalTeacher.find(recipe.teacher, job)
    return TextOnlyTeacher(recipe.teacher)


def _load_tokenizer(
    recipe: SupervisedRecipe, teacher: LocalTeacher | TextOnlyTeacher, job: Job
) -> Any:
    """Return the tokenizer of the student, which is the teacher's if that is local."""
    if isinstance(teacher, LocalTeacher):
        return teacher.tokenizer
    path = resolve_checkpoint(str(recipe.student), say=job.say)
    return load_tokenizer(Checkpoint.open(path).folder)


def _count_rows(teacher: LocalTeacher | TextOnlyTeacher, student: Any, tokenizer: Any) -> int:
    if isinstance(teacher, LocalTeacher):
        return count_shared_rows(teacher, student, tokenizer)
    return LMHead.of(student).rows


def _describe_teacher(teacher: LocalTeacher | TextOnlyTeacher) -> dict[str, Any]:
    if isinstance(teacher, LocalTeacher):
        return teacher.describe()
    return {"teacher": teacher.fingerprint, "writer": teacher.about}
