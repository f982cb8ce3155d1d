"""Training on the log-probabilities that a teacher behind an endpoint returns for the records."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import (
    list_generator_parents,
    prepare_data,
    select_reached,
)
from stillroom.distill.evaluator import FidelityEvaluator
from stillroom.distill.output import describe_objective, make_student_card, warn_about_teachers
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.ensemble import WeightedTeacher, count_rows_shared_by_all
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.distill.trainers.stored_targets import (
    CLOSING,
    TeacherRecords,
    describe_teacher,
    encode_held_out,
    report_by_teacher,
    store_targets,
)
from stillroom.distill.trainers.student import (
    evaluate_start,
    finish_student,
    load_student,
    make_batch_source,
    train_student,
)
from stillroom.objects import resolve_local
from stillroom.train.data import split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.endpoint_logits import EndpointLogitsRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_on_endpoint_logits"]


def train_on_endpoint_logits(
    recipe: EndpointLogitsRecipe, job: Job, preflight: PreflightReport
) -> Artifact:
    """Train a student to match the top tokens of a teacher behind an endpoint.

    The endpoint is queried once for every record, before training.

    Raises:
        BackendError: If the endpoint cannot be reached or returns too little.
        DataError: If records, cache or a loss cannot be used.
        RecipeError: If the endpoint does not support the recipe's targets.
        CheckpointError: If the student is missing, or the teacher has another vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    method, ranks = recipe.method, ProcessGroup(alone=True)
    with (
        limit_threads(recipe.train.threads),
        closing(EndpointTeacher.find(recipe.teacher, job)) as teacher,
    ):
        weighted = WeightedTeacher(teacher)
        warn_about_teachers([teacher], job)
        split = split_records(resolve_local(recipe.records))
        data = prepare_data(
            recipe,
            split,
            teacher.tokenizer,
            job,
            teacher=recipe.teacher,
            rationale=recipe.rationale,
            context=recipe.context,
        )
        held_out = encode_held_out(recipe, split, teacher.tokenizer, job, recipe.context)
        start, details = prepare_student(recipe.student, job, teacher, data.tokenized)

        def count_rows(student: Any, tokenizer: Any) -> int:
            return count_rows_shared_by_all([weighted], student, tokenizer)

        context = load_student(recipe, job, ranks, start, data, split, count_rows)
        card = make_student_card(recipe, [teacher], data, describe_objective(method))
        records = TeacherRecords(weighted, select_reached(recipe, data.tokenized), held_out)
        with store_targets(
            [records], context, recipe.targets, temperature=method.temperature
        ) as stored:
            evaluator = FidelityEvaluator(
                recipe,
                job,
                split,
                teacher.tokenizer,
                [teacher],
                method.method_name(),
                context=recipe.context,
                has_generated_text=recipe.sequence is not None or recipe.rationale is not None,
                references=stored.references,
                report=lambda metrics: report_by_teacher([teacher], metrics, seed=recipe.seed),
            )
            evaluate_start(evaluator, context, preflight)
            context = context.with_lora()
            loss = DistillationLoss(method, rows=context.rows, precision=context.precision)
            source = make_batch_source(context, stored.caches[0])
            trained = train_student(context, source, loss, card, CLOSING)
            del context, source
            return finish_student(
                evaluator,
                trained,
                data,
                method=f"distill.methods.{method.method_name()}",
                details={
                    **details,
                    "teachers": [describe_teacher(weighted)],
                    "caches": stored.headers,
                },
                writers=list_generator_parents(recipe, recipe.teacher, recipe.rationale),
            )
