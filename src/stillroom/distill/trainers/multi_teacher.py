"""Training from stored distributions: of several teachers, or of one behind an endpoint.

Several are combined by weight or selected by a record's source, and stored one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import (
    PreparedData,
    make_record_source,
    prepare_data,
    select_reached,
)
from stillroom.distill.data.tokenized import Batch, TokenizedRecord, make_batch
from stillroom.distill.evaluator import FidelityEvaluator, TrainedStudent
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.losses.targets import concatenate_targets
from stillroom.distill.output import (
    describe_objective,
    make_student_card,
    name_method,
    warn_about_teachers,
)
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.teachers.ensemble import (
    WeightedTeacher,
    assign_records,
    count_rows_shared_by_all,
    open_teachers,
)
from stillroom.distill.trainers.loss import DistillationLoss, MultiTeacherObjective
from stillroom.distill.trainers.stored_targets import (
    CLOSING,
    TeacherRecords,
    describe_teacher,
    encode_held_out,
    report_by_teacher,
    store_targets,
)
from stillroom.distill.trainers.student import (
    DistillationContext,
    evaluate_start,
    finish_student,
    load_student,
    make_batch_source,
    train_student,
)
from stillroom.errors import DataError, count_noun
from stillroom.objects import resolve_local
from stillroom.train.data import split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.interfaces import DistillationObjective
    from stillroom.distill.jobs.endpoint_logits import EndpointLogitsRecipe
    from stillroom.distill.jobs.multi_teacher import MultiTeacherRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_from_caches", "train_on_several_teachers"]

Assignment = dict[str, tuple[int, ...]]


def train_on_several_teachers(
    recipe: MultiTeacherRecipe, job: Job, preflight: PreflightReport
) -> Artifact:
    """Train a student to match the distributions of several teachers; see ``train_from_caches``."""
    with open_teachers(recipe.teachers, job) as weighted:
        return train_from_caches(recipe, job, preflight, weighted, source_field=recipe.source_field)


def train_from_caches(
    recipe: MultiTeacherRecipe | EndpointLogitsRecipe,
    job: Job,
    preflight: PreflightReport,
    weighted: Sequence[WeightedTeacher],
    *,
    source_field: str = "",
) -> Artifact:
    """Train a student to match the stored distributions of one or several teachers on records.

    Args:
        recipe: Settings of the job.
        job: Started job.
        preflight: Report of its checks.
        weighted: Open teachers, with their shares of the records.
        source_field: Field of a record that selects its teacher, if teachers have a source.

    Raises:
        BackendError: If an endpoint cannot be reached or returns too little.
        DataError: If records, cache or a loss cannot be used, or a record has no teacher.
        RecipeError: If an endpoint does not support the recipe's targets.
        CheckpointError: If a model is missing, or a teacher has another vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    ranks = ProcessGroup(alone=True)
    with limit_threads(recipe.train.threads):
        teachers = [one.teacher for one in weighted]
        tokenizer = teachers[0].tokenizer
        warn_about_teachers(teachers, job)
        split = split_records(resolve_local(recipe.records))
        data = prepare_data(recipe, split, tokenizer, job)
        measured = split.held_out[: recipe.fidelity.records]
        assigned = assign_records(weighted, [*data.records, *measured], source_field)
        data = _weight_records(data, weighted, assigned, job)
        held_out = encode_held_out(recipe, split, tokenizer, job)
        start, details = prepare_student(recipe.student, job, teachers[0], data.tokenized)

        count_rows = partial(count_rows_shared_by_all, weighted)
        context = load_student(recipe, job, ranks, start, data, split, count_rows)
        objective = describe_objective(recipe.method)
        card = make_student_card(recipe, teachers, data, objective)
        reached = select_reached(recipe, data.tokenized, job)
        records = [
            TeacherRecords(
                one, _records_of(number, reached, assigned), _records_of(number, held_out, assigned)
            )
            for number, one in enumerate(weighted)
        ]
        _warn_about_unmeasured(records, len(held_out), job)
        temperature = recipe.method.temperature
        with store_targets(records, context, recipe.targets, temperature=temperature) as stored:
            evaluator = FidelityEvaluator(
                recipe,
                job,
                split,
                tokenizer,
                teachers,
                recipe.method.method_name(),
                references=stored.references,
                report=lambda metrics: report_by_teacher(teachers, metrics, seed=recipe.seed),
            )
            evaluate_start(evaluator, context, preflight)
            trained = _train(recipe, context.with_lora(), weighted, assigned, stored.caches, card)
            del context
            return finish_student(
                evaluator,
                trained,
                data,
                method=name_method(recipe.method),
                details={
                    **details,
                    "teachers": [describe_teacher(one) for one in weighted],
                    "caches": stored.headers,
                },
            )


def _combines_teachers(teachers: Sequence[WeightedTeacher]) -> bool:
    """Return whether every record has several teachers."""
    return len(teachers) > 1 and teachers[0].source is None


def _warn_about_unmeasured(records: Sequence[TeacherRecords], measured: int, job: Job) -> None:
    """Warn about each teacher none of whose source's records is among those ``measured``."""
    for one in records if measured else ():
        if not one.held_out:
            job.warn(
                f"{one.weighted.teacher.name} is not measured: no held-out record of the "
                f"{count_noun(measured, 'record')} measured is of its source "
                f"{one.weighted.source!r}; fidelity.records measures more"
            )


def _weight_records(
    data: PreparedData, teachers: Sequence[WeightedTeacher], assigned: Assignment, job: Job
) -> PreparedData:
    """Return the training data with the weight of each record's teacher, and count by teacher."""
    counts = [len(_records_of(index, data.tokenized, assigned)) for index in range(len(teachers))]
    named = [f"{one.teacher.name} {n}" for one, n in zip(teachers, counts, strict=True)]
    tokenized = data.tokenized
    if 0 in counts:
        one = teachers[counts.index(0)]
        raise DataError(
            f"no training record is for the teacher {one.teacher.name} (source {one.source!r})",
            code="distill.unused-teacher",
            where="teachers",
            expected="records of every teacher's source",
            next="correct the source or source_field, or leave the teacher out",
        )
    if len(teachers) > 1:
        job.say(f"records per teacher: {', '.join(named)}")
        data = replace(data, counts={**data.counts, "taught": counts})
    if not _combines_teachers(teachers):
        tokenized = [
            replace(record, weight=record.weight * teachers[assigned[record.record_id][0]].weight)
            for record in tokenized
        ]
    return replace(data, tokenized=tokenized)


def _records_of(
    index: int, records: Sequence[TokenizedRecord], assigned: Assignment
) -> list[TokenizedRecord]:
    """Return the records of one teacher."""
    return [record for record in records if index in assigned[record.record_id]]


def _train(
    recipe: MultiTeacherRecipe | EndpointLogitsRecipe,
    context: DistillationContext,
    teachers: Sequence[WeightedTeacher],
    assigned: Assignment,
    caches: Sequence[LogitCache],
    card: dict[str, Any],
) -> TrainedStudent:
    objective: DistillationObjective | MultiTeacherObjective = recipe.method
    if _combines_teachers(teachers):
        objective = MultiTeacherObjective(recipe.method, [one.weight for one in teachers])
    loss = DistillationLoss(objective, rows=context.rows, precision=context.precision)
    if len(teachers) == 1:
        return train_student(context, make_batch_source(context, caches[0]), loss, card, CLOSING)
    device = context.device

    def load(records: Sequence[TokenizedRecord]) -> Batch:
        views = [record.teacher_view for record in records]
        if _combines_teachers(teachers):
            targets = tuple(cache.target(views, device) for cache in caches)
            return make_batch(records, targets, device)
        parts = [
            caches[assigned[record.record_id][0]].target([view], device)
            for record, view in zip(records, views, strict=True)
        ]
        return make_batch(records, concatenate_targets(parts), device)

    records = context.tokenized
    names = [f"{record.name} {assigned[record.record_id]}" for record in records]
    source = make_record_source(recipe, records, records, load, names)
    return train_student(context, source, loss, card, CLOSING)
