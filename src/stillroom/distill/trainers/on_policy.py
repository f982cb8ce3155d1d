"""Training on text that the student samples, scored by a local teacher in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import list_generator_parents
from stillroom.distill.evaluator import TrainedStudent
from stillroom.distill.on_policy.collators import SameTokenizerCollator
from stillroom.distill.on_policy.generation import GenerationModel
from stillroom.distill.output import describe_objective, make_student_card
from stillroom.distill.teachers.local import LocalTeacher, ModelScorer
from stillroom.distill.trainers.loss import make_live_loss
from stillroom.distill.trainers.rollouts import (
    OnPolicyTeacher,
    get_credit,
    make_record_items,
    open_rollouts,
)
from stillroom.distill.trainers.student import (
    DistillationContext,
    finish_student,
    start_distillation,
    train_student,
)
from stillroom.train.distributed import ProcessGroup
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.on_policy import OnPolicyRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = ["train_on_policy"]


def train_on_policy(recipe: OnPolicyRecipe, job: Job, preflight: PreflightReport) -> Artifact:
    """Train a student on its own samples, with a local teacher's distributions.

    Raises:
        DataError: If no record has a usable prompt, or a loss is not finite.
        RecipeError: If a feature loss names a nonexistent layer.
        CheckpointError: If teacher or student is missing, or they share no vocabulary.
        Cancelled: If cancellation was requested; ``--resume`` continues.
    """
    with ProcessGroup() as ranks, limit_threads(recipe.train.threads):
        start, context = start_distillation(recipe, job, ranks, preflight)
        objective = describe_objective(recipe.method, recipe.feature_losses)
        card = make_student_card(
            recipe, [start.teacher], start.data, objective, recipe.rollout_policy
        )
        trained = _train(recipe, context.with_lora(), start.teacher, card)
        del context
        is_kd = bool(recipe.method.kd_weight)
        method = f"methods.{recipe.method.method_name()}" if is_kd else "cross_entropy"
        return ranks.on_main(
            lambda: finish_student(
                start.evaluator,
                trained,
                start.data,
                method=f"distill.{method}",
                details={**start.details, "cache": None},
                writers=list_generator_parents(recipe, recipe.teacher, None),
            )
        )


def _train(
    recipe: OnPolicyRecipe,
    context: DistillationContext,
    teacher: LocalTeacher,
    card: dict[str, Any],
) -> TrainedStudent:
    method, policy = recipe.method, recipe.rollout_policy
    rows, precision = context.rows, context.precision
    model = teacher.in_precision(precision)
    generator = GenerationModel(model, rows=rows, precision=precision, is_fixed=True)
    scorer = ModelScorer(model, rows=rows, precision=precision)
    loss = make_live_loss(
        method,
        context.student,
        model,
        rows=rows,
        precision=precision,
        feature_losses=recipe.feature_losses,
        seed=recipe.seed,
    )
    access = OnPolicyTeacher(
        teacher.fingerprint,
        loss,
        SameTokenizerCollator(),
        make_record_items(context),
        scorer if method.needs_scores else None,
        generator if policy.may_need_teacher else None,
        get_credit(method),
    )
    names = [record.name for record in context.tokenized]
    with open_rollouts(context, policy, context.tokenized, names, access) as source:
        return train_student(context, source, loss, card, auxiliary=loss.features)
