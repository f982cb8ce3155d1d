"""Training on hidden states and attention of one local teacher, which runs in every step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import list_generator_parents, prepare_data
from stillroom.distill.evaluator import FidelityEvaluator, TrainedStudent
from stillroom.distill.output import describe_objective, make_student_card, warn_about_teachers
from stillroom.distill.pruning.student import prepare_student
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.distill.trainers.loss import make_live_loss
from stillroom.distill.trainers.student import (
    DistillationContext,
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
    from stillroom.distill.jobs.features import FeaturesRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_on_features"]


def train_on_features(recipe: FeaturesRecipe, job: Job, preflight: PreflightReport) -> Artifact:
    """Train a student to match a local teacher's internal states, next to its distributions.

    Raises:
        DataError: If no training data remains, or a loss is not finite.
        RecipeError: If a feature loss names a nonexistent layer.
        ShapeError: If widths or heads are incompatible with a feature loss.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    with ProcessGroup() as ranks, limit_threads(recipe.train.threads):
        teacher = LocalTeacher.find(recipe.teacher, job)
        warn_about_teachers([teacher], job)
        split = split_records(resolve_local(recipe.records))
        data = ranks.on_main(
            lambda: prepare_data(
                recipe,
                split,
                teacher.tokenizer,
                job,
                teacher=recipe.teacher,
                rationale=recipe.rationale,
            )
        )
        start, details = ranks.on_main(
            lambda: prepare_student(recipe.student, job, teacher, data.tokenized)
        )
        context = load_student(
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
            has_generated_text=recipe.sequence is not None or recipe.rationale is not None,
        )
        evaluate_start(evaluator, context, preflight)
        objective = describe_objective(recipe.method, recipe.feature_losses)
        card = make_student_card(recipe, [teacher], data, objective)
        trained = _train(recipe, context.with_lora(), teacher, card)
        del context
        name = f"methods.{recipe.method.method_name()}" if recipe.method.kd_weight else "features"
        return ranks.on_main(
            lambda: finish_student(
                evaluator,
                trained,
                data,
                method=f"distill.{name}",
                details={**details, **teacher.describe(), "cache": None},
                writers=list_generator_parents(recipe, recipe.teacher, recipe.rationale),
            )
        )


def _train(
    recipe: FeaturesRecipe,
    context: DistillationContext,
    teacher: LocalTeacher,
    card: dict[str, Any],
) -> TrainedStudent:
    loss = make_live_loss(
        recipe.method,
        context.student,
        teacher.in_precision(context.precision),
        rows=context.rows,
        precision=context.precision,
        feature_losses=recipe.feature_losses,
        seed=recipe.seed,
    )
    source = make_batch_source(context)
    return train_student(context, source, loss, card, auxiliary=loss.features)
