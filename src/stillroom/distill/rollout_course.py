"""The course of a student that learns on text written while it learns.

A teacher in this process runs in every step; one behind a server is asked for each text once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from stillroom.distill.cache import TeacherCache
from stillroom.distill.encode import Lesson, encode_lessons
from stillroom.distill.endpoint_teacher import EndpointTeacher
from stillroom.distill.engine import DistillObjective
from stillroom.distill.policy_method import PolicyObjective
from stillroom.distill.rollout import RolloutPolicy
from stillroom.distill.rollout_batch import make_rollout_batch
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
from stillroom.distill.teaching import Classroom, Course, lesson_source, live_objective
from stillroom.errors import DataError
from stillroom.jobs import Journal
from stillroom.models.causal import end_tokens
from stillroom.records import Link, Record, write_records
from stillroom.train.lora import plain_model
from stillroom.train.precision import body_precision
from stillroom.train.ranks import Ranks

__all__ = ["ROLLOUT_FILE", "rollout_course"]

ROLLOUT_FILE = "rollouts.jsonl"


@dataclass(frozen=True, slots=True)
class _Voice:
    """How the teacher is heard: the loss, and what it is asked for beside or in place of states."""

    objective: DistillObjective
    scorer: TeacherScorer | None
    author: Author | None = None
    words: ServerWords | None = None


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
    policy = room.recipe.rollouts
    if policy is None:
        raise ValueError("the recipe has no rollouts")
    size = len(room.lessons)
    room, prompts = _with_prompts(room, policy)
    method, journal = room.recipe.method, room.job.journal("rollouts")
    with _heard(room, policy, told) as voice:
        source = RolloutSource(
            lesson_source(room, None),
            room.lessons,
            prompts,
            policy,
            _make_writer(room, policy, voice.author),
            journal,
            size=size,
            steps=room.recipe.train.count_steps(size),
            say=room.job.say,
            scorer=voice.scorer,
            words=voice.words,
            credit=method.credit if isinstance(method, PolicyObjective) else None,
            validate=_validator(room, policy, voice),
            level=policy.start_level,
        )
        try:
            yield Course(source, voice.objective, {"cache": None}, voice.objective.features)
        finally:
            _write_rollouts(room, policy, journal, prompts)


@contextmanager
def _heard(room: Classroom, policy: RolloutPolicy, told: TeacherCache | None) -> Iterator[_Voice]:
    """Give the teacher's voice; a server's connections and bill end with the body."""
    teacher, method = room.teacher, room.recipe.method
    if not isinstance(teacher, EndpointTeacher):
        model = as_local(teacher).lowered(room.precision)
        author = Author(model, rows=room.rows, precision=room.precision, is_fixed=True)
        scorer = ModelScorer(model, rows=room.rows, precision=room.precision)
        yield _Voice(
            live_objective(room),
            scorer if method.needs_scores else None,
            author if policy.may_need_teacher else None,
        )
        return
    objective = DistillObjective(method, rows=room.rows, precision=room.precision)
    asked = teacher if method.needs_scores else None
    if not method.asks_teacher or told is None:
        with teacher.billed(room.job):
            yield _Voice(objective, asked)
        return
    with ServerWords.open(teacher, room.job, told) as words:
        yield _Voice(objective, asked, words=words)


def _with_prompts(room: Classroom, policy: RolloutPolicy) -> tuple[Classroom, list[RolloutPrompt]]:
    """Return the classroom with the lessons that can prompt, and their prompts."""
    found = make_prompts(
        room.tokenizer,
        room.records,
        room.lessons,
        opening_tokens=policy.opening_tokens,
        max_tokens=room.recipe.max_tokens,
    )
    kept: list[Lesson] = []
    prompts: list[RolloutPrompt] = []
    for lesson, prompt in zip(room.lessons, found, strict=True):
        if prompt is not None:
            kept.append(lesson)
            prompts.append(prompt)
    lost = len(room.lessons) - len(kept)
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
    return replace(room, lessons=kept), prompts


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
    room: Classroom, policy: RolloutPolicy, voice: _Voice
) -> Callable[[nn.Module, Ranks], float] | None:
    """Return what gives the mean loss on held-out records, where the policy learns of it.

    Raises:
        DataError: If there is no held-out record to validate on.
    """
    if not policy.learns_of_loss:
        return None
    lessons, _ = encode_lessons(
        room.tokenizer,
        room.held_out[: policy.validated],
        max_tokens=room.recipe.max_tokens,
        include_prompt=room.recipe.include_prompt,
    )
    if not lessons:
        raise DataError(
            f"'{policy.method_name()}' validates on held-out records, and there is none",
            code="distill.no-held-out",
            where="records",
            expected="records of which some have fields.split 'held_out', or name no split",
            next="hold some records out, or use rollouts on_policy",
        )

    def validate(model: nn.Module, ranks: Ranks) -> float:
        sums = [0.0, 0.0]
        if voice.words is not None:
            voice.words.hear(lessons)
        was_training = model.training
        model.eval()
        with torch.no_grad(), body_precision(room.precision, room.device):
            for lesson in lessons[ranks.rank :: ranks.count]:  # one at a time: see capture
                target = voice.words.target([lesson], room.device) if voice.words else None
                batch = make_rollout_batch([lesson], room.device, target)
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
