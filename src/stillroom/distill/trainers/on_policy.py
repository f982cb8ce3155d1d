"""On-policy training on text that the student generates while it learns.

A teacher in this process runs in every step; one behind a server is asked for each text once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stillroom.distill.data.preparation import make_record_source
from stillroom.distill.data.tokenized import TokenizedRecord, tokenize_records
from stillroom.distill.interfaces import PolicyGradientObjective, RolloutPolicy
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.on_policy.collators import (
    EndpointTargets,
    RolloutCollator,
    SameTokenizerCollator,
)
from stillroom.distill.on_policy.generation import GenerationModel, RolloutGenerator
from stillroom.distill.on_policy.rollout import (
    OnPolicyPrompt,
    find_turn_end,
    make_record,
    make_rollout_prompts,
)
from stillroom.distill.on_policy.source import RolloutBatchSource, RolloutBlock
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.ensemble import require_local
from stillroom.distill.teachers.local import ModelScorer, TeacherScorer
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.distill.trainers.trainer import DistillationContext, TrainingSetup, make_live_loss
from stillroom.errors import DataError
from stillroom.jobs import Journal
from stillroom.models.local.causal_lm import find_end_tokens
from stillroom.records import Link, Record, write_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import Objective
from stillroom.train.lora import unwrap_model
from stillroom.train.precision import autocast_body

__all__ = ["ROLLOUT_FILE", "OnPolicyTeacher", "open_on_policy_training", "open_rollout_training"]

ROLLOUT_FILE = "rollouts.jsonl"


@dataclass(frozen=True, slots=True)
class OnPolicyTeacher:
    """How the teacher is heard.

    Args:
        objective: The loss of a micro-batch.
        reading: Makes what is learned from of each rollout.
        read_records: The same of records that are validated on.
        scorer: What tells how likely the teacher finds each text, where that is needed.
        author: The teacher as a writer, where it may write.
        beside: What is trained with the student (``TrainingSetup``).
    """

    objective: Objective[Any]
    reading: RolloutCollator
    read_records: Callable[[Sequence[Record]], Sequence[Any]]
    scorer: TeacherScorer | None = None
    author: GenerationModel | None = None
    beside: nn.Module | None = None


@contextmanager
def open_on_policy_training(
    room: DistillationContext, told: LogitCache | None = None
) -> Iterator[TrainingSetup]:
    """Prepare a course on rollouts; afterwards ``output/rollouts.jsonl`` holds every one of them.

    Args:
        room: Of the job.
        told: What a teacher behind a server said of the records, where they are learned from.

    Raises:
        BackendError: If a server fails.
        DataError: If no record can prompt for a text.
    """
    names = [lesson.name for lesson in room.lessons]
    with (
        _open_teacher(room, _get_policy(room), told) as voice,
        open_rollout_training(room, room.lessons, names, voice) as course,
    ):
        yield course


@contextmanager
def open_rollout_training(
    room: DistillationContext, items: Sequence[Any], names: Sequence[str], voice: OnPolicyTeacher
) -> Iterator[TrainingSetup]:
    """Prepare a course on rollouts of any reading.

    Args:
        room: Of the job.
        items: What the reading's micro-batches are made of, one for each of the room's lessons.
        names: What each item's loss follows from, likewise.
        voice: How the teacher is heard.

    Raises:
        DataError: If no record can prompt for a text, or none is there to validate on.
    """
    policy, size = _get_policy(room), len(room.lessons)
    kept = _find_prompts(room, policy)
    lessons, chosen = [room.lessons[at] for at in kept], [items[at] for at in kept]
    method, journal = room.recipe.method, room.job.journal("rollouts")
    device, prompts = room.device, list(kept.values())
    source = RolloutBatchSource(
        make_record_source(
            room.recipe,
            lessons,
            chosen,
            lambda some: voice.reading.batch(some, device),
            [names[at] for at in kept],
        ),
        chosen,
        prompts,
        policy,
        _make_generator(room, policy, voice.author),
        journal,
        collator=voice.reading,
        size=size,
        steps=room.recipe.train.count_steps(size),
        say=room.job.say,
        scorer=voice.scorer,
        credit=method.credit if isinstance(method, PolicyGradientObjective) else None,
        validate=_make_validator(room, policy, voice),
        level=policy.start_level,
    )
    try:
        yield TrainingSetup(source, voice.objective, {"cache": None}, voice.beside)
    finally:
        _save_rollouts(room, policy, journal, prompts)


def _get_policy(room: DistillationContext) -> RolloutPolicy:
    """Return the recipe's policy."""
    if room.recipe.rollouts is None:
        raise ValueError("the recipe has no rollouts")
    return room.recipe.rollouts


@contextmanager
def _open_teacher(
    room: DistillationContext, policy: RolloutPolicy, told: LogitCache | None
) -> Iterator[OnPolicyTeacher]:
    """Give the teacher's voice; a server's connections and bill end with the body."""
    teacher, method = room.teacher, room.recipe.method

    def read_records(records: Sequence[Record]) -> Sequence[TokenizedRecord]:
        limit, with_prompt = room.recipe.max_tokens, room.recipe.include_prompt
        return tokenize_records(
            room.tokenizer, records, max_tokens=limit, include_prompt=with_prompt
        )[0]

    if not isinstance(teacher, EndpointTeacher):
        model = require_local(teacher).lowered(room.precision)
        author = GenerationModel(model, rows=room.rows, precision=room.precision, is_fixed=True)
        scorer = ModelScorer(model, rows=room.rows, precision=room.precision)
        live = make_live_loss(room)
        yield OnPolicyTeacher(
            live,
            SameTokenizerCollator(),
            read_records,
            scorer if method.needs_scores else None,
            author if policy.may_need_teacher else None,
            live.features,
        )
        return
    objective = DistillationLoss(method, rows=room.rows, precision=room.precision)
    asked = teacher if method.needs_scores else None
    if not method.asks_teacher or told is None:
        with teacher.billed(room.job):
            yield OnPolicyTeacher(objective, SameTokenizerCollator(), read_records, asked)
        return
    with EndpointTargets.open(teacher, room.job, told) as words:
        yield OnPolicyTeacher(objective, SameTokenizerCollator(words), read_records, asked)


def _find_prompts(room: DistillationContext, policy: RolloutPolicy) -> dict[int, OnPolicyPrompt]:
    """Return the prompts of the lessons that have one, by the lesson's number."""
    found = make_rollout_prompts(
        room.tokenizer,
        room.records,
        room.lessons,
        opening_tokens=policy.opening_tokens,
        max_tokens=room.recipe.max_tokens,
    )
    kept = {at: prompt for at, prompt in enumerate(found) if prompt is not None}
    lost = len(found) - len(kept)
    if not kept:
        raise DataError(
            f"none of {lost} records can prompt for a text",
            code="distill.no-prompts",
            where="records",
            expected="records with a turn before the assistant's last one that leaves room within "
            f"max_tokens ({room.recipe.max_tokens}), or plain texts of more than "
            f"rollouts.opening_tokens ({policy.opening_tokens})",
            next="raise max_tokens, or lower rollouts.opening_tokens",
        )
    if lost:
        room.job.say(
            f"{lost} records have no prompt that leaves room within {room.recipe.max_tokens} "
            "tokens: they take no part"
        )
    return kept


def _make_generator(
    room: DistillationContext, policy: RolloutPolicy, author: GenerationModel | None
) -> RolloutGenerator:
    return RolloutGenerator(
        policy,
        GenerationModel(room.student, rows=room.rows, precision=room.precision),
        author,
        ends=find_end_tokens(unwrap_model(room.student), room.tokenizer)
        | find_turn_end(room.tokenizer),
        max_tokens=room.recipe.max_tokens,
        seed=room.recipe.seed,
    )


def _make_validator(
    room: DistillationContext, policy: RolloutPolicy, voice: OnPolicyTeacher
) -> Callable[[nn.Module, ProcessGroup], float] | None:
    """Return what gives the mean loss on held-out records, where the policy learns of it.

    Raises:
        DataError: If there is no held-out record to validate on.
    """
    if not policy.learns_of_loss:
        return None
    items, reading = voice.read_records(room.held_out[: policy.validated]), voice.reading
    if not items:
        raise DataError(
            f"'{policy.method_name()}' validates on held-out records, and there is none",
            code="distill.no-held-out",
            where="records",
            expected="records of which some have fields.split 'held_out', or name no split",
            next="hold some records out, or use rollouts on_policy",
        )

    def validate(model: nn.Module, ranks: ProcessGroup) -> float:
        sums = [0.0, 0.0]
        reading.hear(items)
        was_training = model.training
        model.eval()
        with torch.no_grad(), autocast_body(room.precision, room.device):
            for item in items[ranks.rank :: ranks.count]:  # one at a time: see capture
                batch = reading.batch([item], room.device)
                sums[0] += float(voice.objective(model, batch).total)
                sums[1] += batch.valid
        model.train(was_training)
        every = ranks.gather(sums)
        return sum(part[0] for part in every) / sum(part[1] for part in every)

    return validate


def _save_rollouts(
    room: DistillationContext,
    policy: RolloutPolicy,
    journal: Journal,
    prompts: Sequence[OnPolicyPrompt],
) -> None:
    """Write every rollout of the journal as a record, in order."""
    if len(journal) == 0:
        return
    by_id = {prompt.record_id: prompt for prompt in prompts}
    teacher = room.teacher.fingerprint
    method = f"distill.rollout_policies.{policy.method_name()}"

    def records() -> Iterator[Record]:
        for key in sorted(journal.keys(), key=int):
            block = RolloutBlock.from_json(journal[key])
            author = teacher if block.text_from == "teacher" else f"{room.start}@{key}"
            for one in block.rollouts:
                link = Link(method, author, (one.record_id,))
                fields = {"step": int(key), "seed": room.recipe.seed, "by": block.text_from}
                yield make_record(room.tokenizer, one, by_id[one.record_id], link, fields)

    write_records(room.job.output / ROLLOUT_FILE, records())
