"""Training on text that the student samples, scored by a local teacher in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.preparation import make_record_source
from stillroom.distill.data.tokenized import TokenizedRecord, tokenize_records
from stillroom.distill.evaluator import TrainedStudent
from stillroom.distill.interfaces import (
    DistillationObjective,
    PolicyGradientObjective,
    RolloutPolicy,
)
from stillroom.distill.on_policy.collators import RolloutCollator, SameTokenizerCollator
from stillroom.distill.on_policy.generation import GenerationModel, RolloutGenerator
from stillroom.distill.on_policy.rollout import (
    OnPolicyPrompt,
    find_turn_end,
    make_record,
    make_rollout_prompts,
)
from stillroom.distill.on_policy.source import RolloutBatchSource, RolloutBlock
from stillroom.distill.output import describe_objective, make_student_card, name_method
from stillroom.distill.teachers.local import LocalTeacher, ModelScorer, TeacherScorer
from stillroom.distill.trainers.loss import make_live_loss
from stillroom.distill.trainers.student import (
    DistillationContext,
    finish_student,
    start_distillation,
    train_student,
)
from stillroom.errors import DataError
from stillroom.jobs import Journal
from stillroom.models.local.causal_lm import find_end_tokens
from stillroom.records import Link, Record, write_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import Objective
from stillroom.train.lora import unwrap_model
from stillroom.train.precision import autocast_body, limit_threads

if TYPE_CHECKING:
    from stillroom.distill.interfaces import Numbers
    from stillroom.distill.jobs.on_policy import OnPolicyRecipe
    from stillroom.jobs import Job
    from stillroom.jobs.preflight import PreflightReport
    from stillroom.provenance import Artifact

__all__ = [
    "OnPolicyTeacher",
    "get_credit",
    "make_record_items",
    "open_rollouts",
    "train_on_policy",
]


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
        return ranks.on_main(
            lambda: finish_student(
                start.evaluator,
                trained,
                start.data,
                method=name_method(recipe.method, recipe.feature_losses),
                details={**start.details, "cache": None},
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


_ROLLOUT_FILE = "rollouts.jsonl"


@dataclass(frozen=True, slots=True)
class OnPolicyTeacher:
    """Access to the teacher in on-policy training.

    Args:
        fingerprint: Digest of its weights, or of the endpoint that serves them.
        objective: Loss function of a micro-batch.
        collator: Collator of rollouts.
        make_items: Converts validation records to training items.
        scorer: Scores texts by the teacher, if needed.
        generator: Teacher as a generator, if needed.
        credit: Credits of the tokens of a block, if the objective is a policy gradient.
    """

    fingerprint: str
    objective: Objective[Any]
    collator: RolloutCollator
    make_items: Callable[[Sequence[Record]], Sequence[Any]]
    scorer: TeacherScorer | None = None
    generator: GenerationModel | None = None
    credit: Callable[[Sequence[Numbers]], list[Numbers]] | None = None


@contextmanager
def open_rollouts(
    context: DistillationContext,
    policy: RolloutPolicy,
    items: Sequence[Any],
    names: Sequence[str],
    teacher: OnPolicyTeacher,
) -> Iterator[RolloutBatchSource]:
    """Yield the source of micro-batches; afterwards ``output/rollouts.jsonl`` has every rollout.

    Args:
        context: Student and records of the job.
        policy: Source of each step's text.
        items: Training item of each of the context's records.
        names: Digest of everything that determines each item's loss.
        teacher: Access to the teacher.

    Raises:
        DataError: If no record has a usable prompt, or there is none for validation.
    """
    size = len(context.tokenized)
    prompts_by_index = _find_prompts(context, policy)
    records = [context.tokenized[index] for index in prompts_by_index]
    selected = [items[index] for index in prompts_by_index]
    journal = context.job.journal("rollouts")
    device, prompts = context.device, list(prompts_by_index.values())
    source = RolloutBatchSource(
        make_record_source(
            context.recipe,
            records,
            selected,
            lambda batch_items: teacher.collator.batch(batch_items, device),
            [names[index] for index in prompts_by_index],
        ),
        selected,
        prompts,
        policy,
        _make_generator(context, policy, teacher.generator),
        journal,
        collator=teacher.collator,
        size=size,
        steps=context.recipe.train.count_steps(size),
        warn=context.job.warn,
        scorer=teacher.scorer,
        credit=teacher.credit,
        validate=_make_validator(context, policy, teacher),
        level=policy.start_level,
    )
    try:
        yield source
    finally:
        _save_rollouts(context, policy, teacher.fingerprint, journal, prompts)


def get_credit(
    method: DistillationObjective,
) -> Callable[[Sequence[Numbers]], list[Numbers]] | None:
    """Return the credits of a policy gradient; None for a divergence."""
    return method.credit if isinstance(method, PolicyGradientObjective) else None


def make_record_items(
    context: DistillationContext,
) -> Callable[[Sequence[Record]], Sequence[TokenizedRecord]]:
    """Return the conversion of validation records to items of one vocabulary."""
    limit, with_prompt = context.recipe.max_tokens, context.recipe.include_prompt
    tokenizer = context.tokenizer

    def make_items(records: Sequence[Record]) -> Sequence[TokenizedRecord]:
        return tokenize_records(tokenizer, records, max_tokens=limit, include_prompt=with_prompt)[0]

    return make_items


def _find_prompts(context: DistillationContext, policy: RolloutPolicy) -> dict[int, OnPolicyPrompt]:
    """Return the usable prompts, by the record's index."""
    prompts = make_rollout_prompts(
        context.tokenizer,
        context.records,
        context.tokenized,
        opening_tokens=policy.opening_tokens,
        max_tokens=context.recipe.max_tokens,
    )
    usable = {index: prompt for index, prompt in enumerate(prompts) if prompt is not None}
    lost = len(prompts) - len(usable)
    if not usable:
        raise DataError(
            f"none of {lost} records has a usable prompt",
            code="distill.no-prompts",
            where="records",
            expected="records with a turn before the assistant's last one, shorter than max_tokens "
            f"({context.recipe.max_tokens}), or plain texts of more than "
            f"rollout_policy.opening_tokens ({policy.opening_tokens})",
            next="raise max_tokens, or lower rollout_policy.opening_tokens",
        )
    if lost:
        context.job.say(
            f"{lost} records have no prompt shorter than max_tokens ({context.recipe.max_tokens}): "
            "they are not used"
        )
    return usable


def _make_generator(
    context: DistillationContext, policy: RolloutPolicy, teacher_model: GenerationModel | None
) -> RolloutGenerator:
    return RolloutGenerator(
        policy,
        GenerationModel(context.student, rows=context.rows, precision=context.precision),
        teacher_model,
        ends=find_end_tokens(unwrap_model(context.student), context.tokenizer)
        | find_turn_end(context.tokenizer),
        max_tokens=context.recipe.max_tokens,
        seed=context.recipe.seed,
    )


def _make_validator(
    context: DistillationContext, policy: RolloutPolicy, teacher: OnPolicyTeacher
) -> Callable[[nn.Module, ProcessGroup], float] | None:
    """Return a function for the mean held-out loss, if the policy adapts to it.

    Raises:
        DataError: If there is no held-out record.
    """
    if not policy.adapts_to_loss:
        return None
    items = teacher.make_items(context.held_out[: policy.validation_count])
    collator = teacher.collator
    if not items:
        raise DataError(
            f"'{policy.method_name()}' validates on held-out records, and there are none",
            code="distill.no-held-out",
            where="records",
            expected="records of which some have fields.split 'held_out', or none has a split",
            next="hold some records out, or use rollout_policy on_policy",
        )

    def validate(model: nn.Module, ranks: ProcessGroup) -> float:
        sums = [0.0, 0.0]
        collator.fetch(items)
        was_training = model.training
        model.eval()
        with torch.no_grad(), autocast_body(context.precision, context.device):
            for item in items[ranks.rank :: ranks.count]:  # one at a time, as in capture
                batch = collator.batch([item], context.device)
                sums[0] += float(teacher.objective(model, batch).total)
                sums[1] += batch.valid
        model.train(was_training)
        results = ranks.gather(sums)
        return sum(part[0] for part in results) / sum(part[1] for part in results)

    return validate


def _save_rollouts(
    context: DistillationContext,
    policy: RolloutPolicy,
    teacher: str,
    journal: Journal,
    prompts: Sequence[OnPolicyPrompt],
) -> None:
    """Write every rollout of the journal as a record, in order."""
    if len(journal) == 0:
        return
    by_id = {prompt.record_id: prompt for prompt in prompts}
    start = Checkpoint.open(context.start).fingerprint
    method = f"distill.rollout_policies.{policy.method_name()}"

    def records() -> Iterator[Record]:
        for key in sorted(journal.keys(), key=int):
            block = RolloutBlock.from_json(journal[key])
            fingerprint = teacher if block.text_from == "teacher" else f"{start}@{key}"
            for rollout in block.rollouts:
                link = Link(method, fingerprint, (rollout.record_id,))
                fields = {"step": int(key), "seed": context.recipe.seed, "by": block.text_from}
                yield make_record(
                    context.tokenizer, rollout, by_id[rollout.record_id], link, fields
                )

    write_records(context.job.output / _ROLLOUT_FILE, records())
