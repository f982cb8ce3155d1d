"""Training on hidden states and attention of one local teacher, which runs in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import list_generator_parents
from stillroom.distill.evaluator import TrainedStudent
from stillroom.distill.output import describe_objective, make_student_card
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.distill.trainers.loss import make_live_loss
from stillroom.distill.trainers.student import (
    DistillationContext,
    finish_student,
    make_batch_source,
    start_distillation,
    train_student,
)
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
        start, context = start_distillation(
            recipe, job, ranks, preflight, rationale=recipe.rationale
        )
        objective = describe_objective(recipe.method, recipe.feature_losses)
        card = make_student_card(recipe, [start.teacher], start.data, objective)
        trained = _train(recipe, context.with_lora(), start.teacher, card)
        del context
        name = f"methods.{recipe.method.method_name()}" if recipe.method.kd_weight else "features"
        return ranks.on_main(
            lambda: finish_student(
                start.evaluator,
                trained,
                start.data,
                method=f"distill.{name}",
                details={**start.details, "cache": None},
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
