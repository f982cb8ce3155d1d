"""Preparation of training data: split, generation, teacher-only context, tokenization.

Without ``sequence``, ``rationale`` and ``context`` the records are encoded as they are. Who writes
is opened, asked and closed before the teacher is loaded, so that one model is in memory at a time.

How records are split is the floor's: ``stillroom.train.split``.

Source: Snell et al. 2022, arXiv:2209.15189, section 2 (learning by distilling context). Teacher and
student may be the same checkpoint: the teacher answers with a passage, an example or instructions
before it, the student learns the same distributions without them. Only the assistant's tokens are
compared; they are the same on both sides, at other positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.generated_text import (
    RationaleTasks,
    extract_prompt,
    generate_rationales,
    generate_sequences,
    make_rationale_tasks,
)
from stillroom.distill.data.tokenized import TokenizedRecord, tokenize_records
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.settings import (
    EndpointTeacherSettings,
    GenerationSettings,
    TeacherContextSettings,
    check_key_transport,
    name_teacher,
)
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.models import open_text_model, resolve_checkpoint
from stillroom.provenance import Parent
from stillroom.records import Message, Record, write_records
from stillroom.train.data import (
    MicroBatch,
    RecordSource,
    RecordSplit,
    is_training_record,
    split_records,
)

if TYPE_CHECKING:
    from stillroom.evaluate.lm.encoding import EncodedConversation
    from stillroom.models import TextModel

__all__ = [
    "GENERATED_FILE",
    "PreparedData",
    "RecordSplit",
    "add_context",
    "attach_teacher_context",
    "encode_with_context",
    "generate_records",
    "is_training_record",
    "list_generator_parents",
    "list_generators",
    "make_record_source",
    "prepare_data",
    "select_reached",
    "split_records",
    "tokenize_training_records",
]


GENERATED_FILE = "written.jsonl"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What is learned from: records, the same as tokens, and what was counted on the way."""

    records: list[Record]
    lessons: list[TokenizedRecord]
    counts: dict[str, Any]


def prepare_data(
    recipe: DistillRecipe, split: RecordSplit, tokenizer: Any, job: Job
) -> PreparedData:
    """Write, explain and encode the training records as the recipe asks for.

    Raises:
        DataError: If nothing is left to learn from.
        BackendError: If a writer fails.
        Cancelled: If the user asked for it; what was written is kept.
    """
    tasks, counts = generate_records(recipe, split, job)
    lessons, encoded = _encode(recipe, split, tasks, tokenizer, job)
    if recipe.context is not None:
        lessons, counts["context"] = attach_teacher_context(
            recipe.context, tokenizer, tasks.learned, lessons
        )
        job.say(f"{len(lessons)} records are read in context; left out: {counts['context']}")
    return PreparedData(tasks.learned, lessons, {**encoded, **counts})


def generate_records(
    recipe: DistillRecipe, split: RecordSplit, job: Job
) -> tuple[RationaleTasks, dict[str, Any]]:
    """Return the records to learn from, written and explained as the recipe asks for, and counts.

    Records that a model wrote are left in ``output/written.jsonl`` with their origin.

    Raises:
        DataError: If too little was written.
        BackendError: If a writer fails.
        Cancelled: If the user asked for it; what was written is kept.
    """
    records, counts = split.train, dict[str, Any]()
    if recipe.sequence is not None:
        with _open_generator(recipe.sequence, recipe, job) as writer:
            kept = generate_sequences(recipe.sequence, records, writer, job, seed=recipe.seed)
        records, counts["sequences"] = kept.records, kept.to_json()
    tasks = RationaleTasks(answers=list(records))
    if recipe.rationale is not None:
        if recipe.rationale.write is not None:
            with _open_generator(recipe.rationale.write, recipe, job) as writer:
                records = generate_rationales(
                    recipe.rationale, recipe.rationale.write, records, writer, job, seed=recipe.seed
                )
        tasks = make_rationale_tasks(recipe.rationale, records)
        counts["rationales"] = tasks.to_json()
        job.say(f"rationales: {tasks.to_json()}")
    if list_generators(recipe):
        write_records(job.output / GENERATED_FILE, records)
    return tasks, counts


def list_generators(recipe: DistillRecipe) -> list[str]:
    """Return the references of the models that write what is learned."""
    settings = [recipe.sequence, recipe.rationale.write if recipe.rationale else None]
    return list(dict.fromkeys(_get_reference(one, recipe) for one in settings if one is not None))


def list_generator_parents(recipe: DistillRecipe) -> list[Parent]:
    """Return the writers as parents of the job's artifact; an endpoint is known by its name."""
    found = []
    for reference in list_generators(recipe):
        fingerprint = ""
        if "://" not in reference and not reference.startswith("scripted:"):
            fingerprint = Checkpoint.open(resolve_checkpoint(reference)).fingerprint
        found.append(Parent("writer", reference, fingerprint or reference, "checkpoint"))
    return found


def _encode(
    recipe: DistillRecipe, split: RecordSplit, tasks: RationaleTasks, tokenizer: Any, job: Job
) -> tuple[list[TokenizedRecord], dict[str, Any]]:
    def encode(records: Sequence[Record]) -> tuple[list[TokenizedRecord], dict[str, Any]]:
        return tokenize_training_records(
            recipe, replace(split, train=list(records)), tokenizer, job
        )

    lessons, counts = encode(tasks.answers)
    if tasks.rationales and recipe.rationale is not None:
        explained, more = encode(tasks.rationales)
        weight = recipe.rationale.weight
        lessons += [replace(lesson, weight=weight) for lesson in explained]
        counts = {
            name: value + more[name] if isinstance(value, int) else value
            for name, value in counts.items()
        }
    return lessons, counts


@contextmanager
def _open_generator(
    settings: GenerationSettings, recipe: DistillRecipe, job: Job
) -> Iterator[TextModel]:
    teacher = recipe.teacher
    is_served = settings.model is None and isinstance(teacher, EndpointTeacherSettings)
    writer = open_text_model(
        _get_reference(settings, recipe),
        backend=settings.backend,
        job=job,
        num_threads=settings.num_threads,
        say=job.say,
        **(
            _get_endpoint_options(teacher)
            if is_served and isinstance(teacher, EndpointTeacherSettings)
            else {}
        ),
    )
    try:
        yield writer
    finally:
        writer.close()


def _get_endpoint_options(teacher: EndpointTeacherSettings) -> dict[str, Any]:
    """Return how a teacher's server is asked, as its backend takes it."""
    check_key_transport(teacher)
    key = {"api_key": teacher.api_key.reveal()} if teacher.api_key else {}
    return {
        **key,
        "concurrency": teacher.concurrency,
        "tries": teacher.tries,
        "read_timeout_s": teacher.timeout,
        "max_wait_s": teacher.max_wait,
    }


def _get_reference(settings: GenerationSettings, recipe: DistillRecipe) -> str:
    return settings.model or name_teacher(recipe.teacher)


T = TypeVar("T")


B = TypeVar("B", bound=MicroBatch)


def tokenize_training_records(
    recipe: DistillRecipe, split: RecordSplit, tokenizer: Any, job: Job
) -> tuple[list[TokenizedRecord], dict[str, Any]]:
    """Return the training records as lessons, and what was counted on the way.

    Raises:
        DataError: If no record has a position that bears loss.
    """
    with job.phase("encode", len(split.train), "records") as progress:
        lessons, counts = tokenize_records(
            tokenizer,
            split.train,
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
            on_done=progress.advance,
        )
    found = {**counts.to_json(), "passed_over": split.passed_over}
    if counts.cut or counts.left_out or split.passed_over:
        job.say(
            f"{counts.cut} records were cut at {recipe.max_tokens} tokens ({counts.tokens_cut} "
            f"tokens), {counts.left_out} left out, passed over: {split.passed_over or 'none'}"
        )
    if not lessons:
        raise DataError(
            "no record has a token to learn",
            code="distill.no-positions",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {recipe.max_tokens}",
        )
    return lessons, found


def make_record_source(
    recipe: DistillRecipe,
    lessons: Sequence[TokenizedRecord],
    items: Sequence[T],
    load: Callable[[Sequence[T]], B],
    ids: Sequence[str],
    *,
    batch_size: int = 0,
) -> RecordSource[T, B]:
    """Return the micro-batches of some lessons, in the order that the recipe's seed gives.

    Args:
        recipe: Its batch size, micro-batch and seed.
        lessons: What the student reads: their tokens and positions are counted.
        items: What ``load`` makes a micro-batch of, one a lesson.
        load: Does.
        ids: What each item's loss follows from; a resumed run must bring the same.
        batch_size: Records a step, where it is not the recipe's.
    """
    return RecordSource(
        items,
        ids=ids,
        lengths=[len(lesson.ids) for lesson in lessons],
        valid=[len(lesson.positions) for lesson in lessons],
        load=load,
        batch_size=batch_size or recipe.train.batch_size,
        micro_tokens=recipe.train.micro_tokens,
        seed=recipe.seed,
    )


def select_reached(recipe: DistillRecipe, items: Sequence[T]) -> list[T]:
    """Return the items that the recipe's steps ever reach, in their own order.

    A run of fewer steps than an epoch reads some only, and a teacher need not speak of the others.

    Args:
        recipe: Its steps, batch size and seed.
        items: As many as ``make_record_source`` is given, in the same order. With rollouts all are
            returned: which records prompt is known later.
    """
    settings, count = recipe.train, len(items)
    steps = settings.count_steps(count)
    if steps * settings.batch_size >= count or recipe.rollouts is not None:
        return list(items)
    unknown = [0] * count
    order = RecordSource[T, Any](
        items,
        ids=[""] * count,
        lengths=unknown,
        valid=unknown,
        load=list,
        batch_size=settings.batch_size,
        micro_tokens=settings.micro_tokens,
        seed=recipe.seed,
    )
    reached = {number for step in range(steps) for number in order.chosen(step)}
    return [item for number, item in enumerate(items) if number in reached]


def add_context(settings: TeacherContextSettings, record: Record) -> Record | None:
    """Return the record as the teacher reads it, or None where the field is missing or empty."""
    prompt = extract_prompt(record)
    value = record.fields.get(settings.field) if settings.field is not None else ""
    if not prompt or not isinstance(value, str) or (settings.field and not value.strip()):
        return None
    text = settings.text.replace("{context}", value)
    at = len(prompt) - 1
    messages = list(record.messages)
    messages[at] = Message(messages[at].role, text + messages[at].content)
    return replace(record, messages=tuple(messages))


def encode_with_context(
    settings: TeacherContextSettings, tokenizer: Any, record: Record, own: EncodedConversation
) -> EncodedConversation | None:
    """Return a record's tokens as the teacher reads them, or None where they do not fit.

    Args:
        settings: What is added.
        tokenizer: Of both.
        record: As the student reads it.
        own: Its tokens as the student reads them; may be cut.

    Returns:
        Tokens whose first targets are ``own``'s; None without a context, where the record with it
        is too long, or where the answer has other tokens there.

    Raises:
        DataError: If the assistant's part of the conversation cannot be found.
    """
    from stillroom.evaluate.lm.encoding import (
        encode_record,  # torch, which a recipe is read without
    )

    told = add_context(settings, record)
    if told is None:
        return None
    encoded = encode_record(tokenizer, told, max_tokens=settings.max_tokens)
    count = len(own.targets)
    labels = [encoded.ids[at] for at in encoded.targets[:count]]
    return encoded if labels == [own.ids[at] for at in own.targets] else None


def attach_teacher_context(
    settings: TeacherContextSettings,
    tokenizer: Any,
    records: Sequence[Record],
    lessons: Sequence[TokenizedRecord],
) -> tuple[list[TokenizedRecord], dict[str, int]]:
    """Give each lesson what the teacher reads; those that cannot have it are left out and counted.

    Args:
        settings: What is added.
        tokenizer: Of both.
        records: What the lessons were made of, in any order.
        lessons: The student's, with the assistant's tokens alone.

    Raises:
        DataError: If no lesson is left.
    """
    from stillroom.distill.data.tokenized import (
        TokenizedRecord,  # torch, which a recipe is read without
    )
    from stillroom.evaluate.lm.encoding import encode_record

    by_id = {record.id: record for record in records}
    found: list[TokenizedRecord] = []
    counts = {"without_context": 0, "too_long": 0, "other_tokens": 0}
    for lesson in lessons:
        record = add_context(settings, by_id[lesson.record_id])
        if record is None:
            counts["without_context"] += 1
            continue
        encoded = encode_record(tokenizer, record, max_tokens=settings.max_tokens)
        positions = np.asarray([at - 1 for at in encoded.targets], dtype=np.int64)
        heard = TokenizedRecord(
            lesson.record_id, np.asarray(encoded.ids, dtype=np.int64), positions
        )
        if encoded.truncated:
            counts["too_long"] += 1
        elif not np.array_equal(heard.labels[: len(lesson.labels)], lesson.labels):
            counts["other_tokens"] += 1
        else:
            kept = replace(heard, positions=positions[: len(lesson.labels)])
            found.append(replace(lesson, heard=kept))
    if not found:
        raise DataError(
            f"no record can be read with its context: {counts}",
            code="distill.no-context",
            where="context",
            expected=f"records with text in fields.{settings.field}",
            next="check context.field, or raise context.max_tokens",
        )
    return found, counts
