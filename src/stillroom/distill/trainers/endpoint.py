"""Training on the log-probabilities of a teacher behind an endpoint: on records, or on rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import prepare_data
from stillroom.distill.evaluator import FidelityEvaluator, TrainedStudent
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.on_policy.collators import EndpointTargets, SameTokenizerCollator
from stillroom.distill.output import (
    describe_objective,
    make_student_card,
    name_method,
    warn_about_teachers,
)
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.ensemble import WeightedTeacher, count_rows_shared_by_all
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.distill.trainers.multi_teacher import train_from_caches
from stillroom.distill.trainers.on_policy import (
    OnPolicyTeacher,
    get_credit,
    make_record_items,
    open_rollouts,
)
from stillroom.distill.trainers.stored_targets import (
    CLOSING,
    StoredTargets,
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
    train_student,
)
from stillroom.objects import resolve_local
from stillroom.train.data import RecordSplit, split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.endpoint_logits import EndpointLogitsRecipe
    from stillroom.distill.jobs.endpoint_on_policy import EndpointOnPolicyRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_on_endpoint_logits", "train_on_policy_by_endpoint"]


def train_on_endpoint_logits(
    recipe: EndpointLogitsRecipe, job: Job, preflight: PreflightReport
) -> Artifact:
    """Train a student to match the top tokens of a teacher behind an endpoint.

    The endpoint is queried once for every record, before training; see ``train_from_caches``.
    """
    with closing(EndpointTeacher.find(recipe.teacher, job)) as teacher:
        weighted = [WeightedTeacher(teacher)]
        return train_from_caches(recipe, job, preflight, weighted)


def train_on_policy_by_endpoint(
    recipe: EndpointOnPolicyRecipe, job: Job, preflight: PreflightReport
) -> Artifact:
    """Train a student on its own samples, with the log-probabilities of an endpoint.

    The endpoint is queried once for each text, before the step that uses it.

    Raises:
        BackendError: If the endpoint cannot be reached or returns too little.
        DataError: If no record has a usable prompt, or a loss is not finite.
        RecipeError: If the endpoint does not support the recipe's targets.
        CheckpointError: If the student is missing, or the teacher has another vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    ranks = ProcessGroup(alone=True)
    with (
        limit_threads(recipe.train.threads),
        closing(EndpointTeacher.find(recipe.teacher, job)) as teacher,
    ):
        weighted = WeightedTeacher(teacher)
        warn_about_teachers([teacher], job)
        split = split_records(resolve_local(recipe.records))
        data = prepare_data(recipe, split, teacher.tokenizer, job)
        start, details = prepare_student(recipe.student, job, teacher, data.tokenized)

        count_rows = partial(count_rows_shared_by_all, [weighted])
        context = load_student(recipe, job, ranks, start, data, split, count_rows)
        objective = describe_objective(recipe.method)
        card = make_student_card(recipe, [teacher], data, objective, recipe.rollout_policy)
        with _store_targets(recipe, context, teacher, split) as stored:
            evaluator = FidelityEvaluator(
                recipe,
                job,
                split,
                teacher.tokenizer,
                [teacher],
                recipe.method.method_name(),
                references=stored.references,
                report=lambda metrics: report_by_teacher([teacher], metrics, seed=recipe.seed),
            )
            evaluate_start(evaluator, context, preflight)
            trained = _train(recipe, context.with_lora(), teacher, stored, card)
            del context
            caches = {"caches": stored.headers} if stored.headers else {}
            return finish_student(
                evaluator,
                trained,
                data,
                method=name_method(recipe.method),
                details={
                    **details,
                    "teachers": [describe_teacher(weighted)],
                    **caches,
                    "cache": None,
                },
            )


@contextmanager
def _store_targets(
    recipe: EndpointOnPolicyRecipe,
    context: DistillationContext,
    teacher: EndpointTeacher,
    split: RecordSplit,
) -> Iterator[StoredTargets]:
    """Store the endpoint's outputs on records that may be used, and on held-out ones."""
    method = recipe.method
    if not method.asks_teacher and not teacher.probe.granted:
        context.job.say(
            f"{teacher.name} returns log-probabilities of labels only: the distance of the student "
            "to it is not measured"
        )
        yield StoredTargets()
        return
    is_needed = method.asks_teacher and recipe.rollout_policy.uses_records
    held_out = encode_held_out(recipe, split, teacher.tokenizer, context.job)
    records = TeacherRecords(
        WeightedTeacher(teacher), context.tokenized if is_needed else (), held_out
    )
    with store_targets(
        [records], context, recipe.targets, temperature=method.temperature
    ) as stored:
        yield stored


def _train(
    recipe: EndpointOnPolicyRecipe,
    context: DistillationContext,
    teacher: EndpointTeacher,
    stored: StoredTargets,
    card: dict[str, Any],
) -> TrainedStudent:
    loss = DistillationLoss(recipe.method, rows=context.rows, precision=context.precision)
    names = [record.name for record in context.tokenized]
    cache = stored.caches[0] if recipe.method.asks_teacher else None
    with _open_collator(context, teacher, cache) as collator:
        access = OnPolicyTeacher(
            teacher.fingerprint,
            loss,
            collator,
            make_record_items(context),
            teacher if recipe.method.needs_scores else None,
            credit=get_credit(recipe.method),
        )
        policy, items = recipe.rollout_policy, context.tokenized
        with open_rollouts(context, policy, items, names, access) as source:
            return train_student(context, source, loss, card, CLOSING)


@contextmanager
def _open_collator(
    context: DistillationContext, teacher: EndpointTeacher, cache: LogitCache | None
) -> Iterator[SameTokenizerCollator]:
    """Yield the collator, with targets if there is a cache; the cost is logged after the body."""
    if cache is None:
        with teacher.log_usage(context.job):
            yield SameTokenizerCollator()
        return
    with EndpointTargets.open(teacher, context.job, cache) as targets:
        yield SameTokenizerCollator(targets)
