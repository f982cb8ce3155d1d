"""The course of a student that learns on text written while it learns.

A teacher in this process runs in every step; one behind a server is asked for each text once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stillroom.distill.cache import TeacherCache
from stillroom.distill.encode import Lesson, encode_lessons
from stillroom.distill.endpoint_teacher import EndpointTeacher
from stillroom.distill.engine import DistillObjective
from stillroom.distill.lessons import record_source
from stillroom.distill.policy_method import PolicyObjective
from stillroom.distill.rollout import RolloutPolicy
from stillroom.distill.rollout_reading import PlainReading, RolloutReading
from stillroom.distill.rollout_source import Block, RolloutSource
from stillroom.distill.rollout_text import (
    RolloutPrompt,
    make_prompts,
    turn_end,
    write_record,
)
from stillroom.distill.rollout_writing import Author, Writer
from stillroom.distill.scoring import ModelScorer, TeacherScorer
from stillroom.distill.server_words import ServerWords
from stillroom.distill.teachers import as_local
from stillroom.distill.teaching import Classroom, Course, live_objective
from stillroom.errors import DataError
from stillroom.jobs import Journal
from stillroom.models.causal import end_tokens
from stillroom.records import Link, Record, write_records
from stillroom.train.loop import Objective
from stillroom.train.lora import plain_model
from stillroom.train.precision import body_precision
from stillroom.train.ranks import Ranks

__all__ = ["ROLLOUT_FILE", "Voice", "rollout_course", "written_course"]

ROLLOUT_FILE = "rollouts.jsonl"


@dataclass(frozen=True, slots=True)
class Voice:
    """How the teacher is heard.

    Args:
        objective: The loss of a micro-batch.
        reading: Makes what is learned from of each rollout.
        read_records: The same of records that are validated on.
        scorer: What tells how likely the teacher finds each text, where that is needed.
        author: The teacher as a writer, where it may write.
        beside: What is trained with the student (``Course``).
    """

    objective: Objective[Any]
    reading: RolloutReading
    read_records: Callable[[Sequence[Record]], Sequence[Any]]
    scorer: TeacherScorer | None = None
    author: Author | None = None
    beside: nn.Module | None = None


@contextmanager
def rollout_course(room: Classroom, told: TeacherCache | None = None) -> Iterator[Course]:
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
        _heard(room, _policy_of(room), told) as voice,
        written_course(room, room.lessons, names, voice) as course,
    ):
        yield course


@contextmanager
def written_course(
    room: Classroom, items: Sequence[Any], names: Sequence[str], voice: Voice
) -> Iterator[Course]:
    """Prepare a course on rollouts of any reading.

    Args:
        room: Of the job.
        items: What the reading's micro-batches are made of, one for each of the room's lessons.
        names: What each item's loss follows from, likewise.
        voice: How the teacher is heard.

    Raises:
        DataError: If no record can prompt for a text, or none is there to validate on.
    """
    policy, size = _policy_of(room), len(room.lessons)
    kept = _find_prompts(room, policy)
    lessons, chosen = [room.lessons[at] for at in kept], [items[at] for at in kept]
    method, journal = room.recipe.method, room.job.journal("rollouts")
    device, prompts = room.device, list(kept.values())
    source = RolloutSource(
        record_source(
            room.recipe,
            lessons,
            chosen,
            lambda some: voice.reading.batch(some, device),
            [names[at] for at in kept],
        ),
        chosen,
        prompts,
        policy,
        _make_writer(room, policy, voice.author),
        journal,
        reading=voice.reading,
        size=size,
        steps=room.recipe.train.count_steps(size),
        say=room.job.say,
        scorer=voice.scorer,
        credit=method.credit if isinstance(method, PolicyObjective) else None,
        validate=_validator(room, policy, voice),
        level=policy.start_level,
    )
    try:
        yield Course(source, voice.objective, {"cache": None}, voice.beside)
    finally:
        _write_rollouts(room, policy, journal, prompts)


def _policy_of(room: Classroom) -> RolloutPolicy:
    """Return the recipe's policy."""
    if room.recipe.rollouts is None:
        raise ValueError("the recipe has no rollouts")
    return room.recipe.rollouts


@contextmanager
def _heard(room: Classroom, policy: RolloutPolicy, told: TeacherCache | None) -> Iterator[Voice]:
    """Give the teacher's voice; a server's connections and bill end with the body."""
    teacher, method = room.teacher, room.recipe.method

    def read_records(records: Sequence[Record]) -> Sequence[Lesson]:
        limit, with_prompt = room.recipe.max_tokens, room.recipe.include_prompt
        return encode_lessons(
            room.tokenizer, records, max_tokens=limit, include_prompt=with_prompt
        )[0]

    if not isinstance(teacher, EndpointTeacher):
        model = as_local(teacher).lowered(room.precision)
        author = Author(model, rows=room.rows, precision=room.precision, is_fixed=True)
        scorer = ModelScorer(model, rows=room.rows, precision=room.precision)
        live = live_objective(room)
        yield Voice(
            live,
            PlainReading(),
            read_records,
            scorer if method.needs_scores else None,
            author if policy.may_need_teacher else None,
            live.features,
        )
        return
    objective = DistillObjective(method, rows=room.rows, precision=room.precision)
    asked = teacher if method.needs_scores else None
    if not method.asks_teacher or told is None:
        with teacher.billed(room.job):
            yield Voice(objective, PlainReading(), read_records, asked)
        return
    with ServerWords.open(teacher, room.job, told) as words:
        yield Voice(objective, PlainReading(words), read_records, asked)


def _find_prompts(room: Classroom, policy: RolloutPolicy) -> dict[int, RolloutPrompt]:
    """Return the prompts of the lessons that have one, by the lesson's number."""
    found = make_prompts(
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


def _make_writer(room: Classroom, policy: RolloutPolicy, author: Author | None) -> Writer:
    return Writer(
        policy,
        Author(room.student, rows=room.rows, precision=room.precision),
        author,
        ends=end_tokens(plain_model(room.student), room.tokenizer) | turn_end(room.tokenizer),
        max_tokens=room.recipe.max_tokens,
        seed=room.recipe.seed,
    )


def _validator(
    room: Classroom, policy: RolloutPolicy, voice: Voice
) -> Callable[[nn.Module, Ranks], float] | None:
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

    def validate(model: nn.Module, ranks: Ranks) -> float:
        sums = [0.0, 0.0]
        reading.hear(items)
        was_training = model.training
        model.eval()
        with torch.no_grad(), body_precision(room.precision, room.device):
            for item in items[ranks.rank :: ranks.count]:  # one at a time: see capture
                batch = reading.batch([item], room.device)
                sums[0] += float(voice.objective(model, batch).total)
                sums[1] += batch.valid
        model.train(was_training)
        every = ranks.gather(sums)
        return sum(part[0] for part in every) / sum(part[1] for part in every)

    return validate


def _write_rollouts(
    room: Classroom, policy: RolloutPolicy, journal: Journal, prompts: Sequence[RolloutPrompt]
) -> None:
    """Write every rollout of the journal as a record, in order."""
    if len(journal) == 0:
        return
    by_id = {prompt.record_id: prompt for prompt in prompts}
    teacher = room.teacher.fingerprint
    method = f"distill.rollouts.{policy.method_name()}"

    def records() -> Iterator[Record]:
        for key in sorted(journal.keys(), key=int):
            block = Block.from_json(journal[key])
            author = teacher if block.text_from == "teacher" else f"{room.start}@{key}"
            for one in block.rollouts:
                link = Link(method, author, (one.record_id,))
                fields = {"step": int(key), "seed": room.recipe.seed, "by": block.text_from}
                yield write_record(room.tokenizer, one, by_id[one.record_id], link, fields)

    write_records(room.job.output / ROLLOUT_FILE, records())
