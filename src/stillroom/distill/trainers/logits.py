"""Training on the distributions of one local teacher, live or cached, or on its internal states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import select_reached
from stillroom.distill.evaluator import TrainedStudent
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.output import describe_objective, make_student_card, name_method
from stillroom.distill.settings import LiveTargetSettings
from stillroom.distill.teachers.local import LocalTeacher, fill_cache
from stillroom.distill.trainers.loss import DistillationLoss, make_live_loss
from stillroom.distill.trainers.student import (
    DistillationContext,
    DistillationStart,
    finish_student,
    make_batch_source,
    start_distillation,
    train_student,
)
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.features import FeaturesRecipe
    from stillroom.distill.jobs.logits import LogitsRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_on_features", "train_on_logits"]


def train_on_logits(recipe: LogitsRecipe, job: Job, preflight: PreflightReport) -> Artifact:
    """Train a student to match a local teacher's distributions on records.

    Raises:
        ResourceError: If memory or disk is insufficient.
        DataError: If records, cache or a loss cannot be used.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    with ProcessGroup() as ranks, limit_threads(recipe.train.threads):
        start, context = start_distillation(recipe, job, ranks, preflight)
        card = make_student_card(
            recipe, [start.teacher], start.data, describe_objective(recipe.method)
        )
        trained, cache = _train(recipe, context.with_lora(), start.teacher, card)
        del context
        method = name_method(recipe.method)
        return ranks.on_main(lambda: _finish(recipe, start, trained, method, cache))


def _finish(
    recipe: LogitsRecipe | FeaturesRecipe,
    start: DistillationStart,
    trained: TrainedStudent,
    method: str,
    cache: dict[str, Any] | None,
) -> Artifact:
    return finish_student(
        start.evaluator,
        trained,
        start.data,
        method=method,
        details={**start.details, "cache": cache},
    )


def _train(
    recipe: LogitsRecipe, context: DistillationContext, teacher: LocalTeacher, card: dict[str, Any]
) -> tuple[TrainedStudent, dict[str, Any] | None]:
    """Train with the targets of the recipe; return the student and the header of the cache."""
    rows, precision = context.rows, context.precision
    if isinstance(recipe.targets, LiveTargetSettings):
        model = teacher.in_precision(precision)
        loss = DistillationLoss(recipe.method, rows=rows, precision=precision, teacher=model)
        return train_student(context, make_batch_source(context), loss, card), None
    with _open_cache(recipe, context, teacher) as cache:
        loss = DistillationLoss(recipe.method, rows=rows, precision=precision)
        trained = train_student(context, make_batch_source(context, cache), loss, card)
        return trained, cache.header.model_dump()


@contextmanager
def _open_cache(
    recipe: LogitsRecipe, context: DistillationContext, teacher: LocalTeacher
) -> Iterator[LogitCache]:
    """Fill the logit cache, unload the teacher, and yield the cache.

    The main process captures and verifies; the others wait, and read the same cache.
    """
    if isinstance(recipe.targets, LiveTargetSettings):
        raise TypeError("live targets have no cache")
    targets, ranks = recipe.targets, context.ranks
    folder = Path(targets.cache) if targets.cache else context.job.scratch / "cache"
    folder = ranks.share_path(folder)
    header = ranks.on_main(
        lambda: teacher.header(
            targets,
            context.rows,
            context.precision,
            temperature=recipe.method.temperature,
            seed=recipe.seed,
        )
    )

    def capture() -> None:
        with LogitCache.open(folder, header, on_damage=context.job.warn_of_damage) as cache:
            records = select_reached(recipe, context.tokenized, context.job)
            fill_cache(cache, teacher, [record.teacher_view for record in records], context.job)

    ranks.on_main(capture)
    teacher.unload()
    with LogitCache.open(folder, header) as cache:
        yield cache


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
        start, context = start_distillation(recipe, job, ranks, preflight)
        objective = describe_objective(recipe.method, recipe.feature_losses)
        card = make_student_card(recipe, [start.teacher], start.data, objective)
        trained = _train_live(recipe, context.with_lora(), start.teacher, card)
        del context
        name = name_method(recipe.method, recipe.feature_losses)
        return ranks.on_main(lambda: _finish(recipe, start, trained, name, None))


def _train_live(
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
