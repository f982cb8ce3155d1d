"""Preparation of training data: drives generation, teacher-only context and tokenization.

Without ``sequence``, ``rationale`` and ``context`` the records are tokenized unchanged. A
generating model is opened, used and closed before the teacher is loaded, so that one model is in
memory at a time. The training/held-out split is ``stillroom.train.data.split_records``.

Source of context distillation: Snell et al. 2022, arXiv:2209.15189, section 2. Teacher and student
may be the same checkpoint: the teacher reads a passage, an example or instructions before the
question, and the student is trained to match its distributions without them. Only the assistant's
tokens are compared; they are the same on both sides, at different positions.
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
from stillroom.distill.recipes import TrainingRecipe
from stillroom.distill.settings import (
    GenerationSettings,
    RationaleTaskSettings,
    Teacher,
    TeacherContextSettings,
    TextEndpointSettings,
    check_key_transport,
    name_teacher,
)
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.models import open_text_model, resolve_checkpoint
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversation
from stillroom.provenance import Parent
from stillroom.records import Message, Record, write_records
from stillroom.train.data import MicroBatch, RecordSource, RecordSplit
from stillroom.train.replay import list_taken_steps

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "PreparedData",
    "add_context",
    "attach_teacher_context",
    "encode_with_context",
    "generate_records",
    "list_generator_parents",
    "make_record_source",
    "prepare_data",
    "select_reached",
    "tokenize_training_records",
]

_GENERATED_FILE = "written.jsonl"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Training records, their tokenization, and counts of the preparation."""

    records: list[Record]
    tokenized: list[TokenizedRecord]
    counts: dict[str, Any]


def prepare_data(
    recipe: TrainingRecipe,
    split: RecordSplit,
    tokenizer: Any,
    job: Job,
) -> PreparedData:
    """Generate, augment and tokenize the training records of a recipe.

    Raises:
        DataError: If no training data remains.
        BackendError: If a generating model fails.
        Cancelled: If cancellation was requested; generated text is kept.
    """
    rationale, context = recipe.find_rationale(), recipe.find_context()
    tasks, counts = generate_records(recipe, split, job)
    weight = rationale.weight if isinstance(rationale, RationaleTaskSettings) else 1.0
    tokenized, encoded = _encode(recipe, split, tasks, weight, tokenizer, job)
    if context is not None:
        tokenized, counts["context"] = attach_teacher_context(
            context, tokenizer, tasks.records, tokenized
        )
        job.say(f"{len(tokenized)} records have a teacher context; dropped: {counts['context']}")
    return PreparedData(tasks.records, tokenized, {**encoded, **counts})


def generate_records(
    recipe: TrainingRecipe, split: RecordSplit, job: Job
) -> tuple[RationaleTasks, dict[str, Any]]:
    """Return the training records with generated answers and rationales, and counts.

    Generated records are also written to ``output/written.jsonl`` with their origin.

    Raises:
        DataError: If too little text was generated.
        BackendError: If a generating model fails.
        Cancelled: If cancellation was requested; generated text is kept.
    """
    records, counts = split.train, dict[str, Any]()
    teacher = recipe.find_teacher()
    rationale = recipe.find_rationale()
    if recipe.sequence is not None:
        with _open_generator(recipe.sequence, teacher, job) as model:
            sequences = generate_sequences(recipe.sequence, records, model, job, seed=recipe.seed)
        records, counts["sequences"] = sequences.records, sequences.to_json()
    tasks = RationaleTasks(answers=list(records))
    if rationale is not None:
        if rationale.generate is not None:
            with _open_generator(rationale.generate, teacher, job) as model:
                records = generate_rationales(
                    rationale, rationale.generate, records, model, job, seed=recipe.seed
                )
        tasks = make_rationale_tasks(rationale, records)
        counts["rationales"] = tasks.to_json()
        job.say(f"rationales: {tasks.to_json()}")
    if _list_generators(recipe):
        write_records(job.output / _GENERATED_FILE, records)
    return tasks, counts


def _list_generators(recipe: TrainingRecipe) -> list[str]:
    """Return the references of the models that generate training text."""
    rationale = recipe.find_rationale()
    settings = [recipe.sequence, rationale.generate if rationale else None]
    return list(
        dict.fromkeys(
            _get_reference(generation, recipe.find_teacher())
            for generation in settings
            if generation is not None
        )
    )


def list_generator_parents(recipe: TrainingRecipe) -> list[Parent]:
    """Return the generating models as parents of the artifact; an endpoint by its name."""
    parents = []
    for reference in _list_generators(recipe):
        fingerprint = ""
        if "://" not in reference and not reference.startswith("scripted:"):
            fingerprint = Checkpoint.open(resolve_checkpoint(reference)).fingerprint
        parents.append(Parent("writer", reference, fingerprint or reference, "checkpoint"))
    return parents


def _encode(
    recipe: TrainingRecipe,
    split: RecordSplit,
    tasks: RationaleTasks,
    weight: float,
    tokenizer: Any,
    job: Job,
) -> tuple[list[TokenizedRecord], dict[str, Any]]:
    def encode(records: Sequence[Record]) -> tuple[list[TokenizedRecord], dict[str, Any]]:
        return tokenize_training_records(
            replace(split, train=list(records)),
            tokenizer,
            job,
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
        )

    tokenized, counts = encode(tasks.answers)
    if tasks.rationales:
        rationales, rationale_counts = encode(tasks.rationales)
        tokenized += [replace(record, weight=weight) for record in rationales]
        counts = {
            name: value + rationale_counts[name] if isinstance(value, int) else value
            for name, value in counts.items()
        }
    return tokenized, counts


@contextmanager
def _open_generator(
    settings: GenerationSettings, teacher: Teacher | None, job: Job
) -> Iterator[TextModel]:
    options = {}
    if settings.model is None and isinstance(teacher, TextEndpointSettings):
        options = _get_endpoint_options(teacher)
    model = open_text_model(
        _get_reference(settings, teacher),
        backend=settings.backend,
        job=job,
        num_threads=settings.num_threads,
        say=job.say,
        **options,
    )
    try:
        yield model
    finally:
        model.close()


def _get_endpoint_options(teacher: TextEndpointSettings) -> dict[str, Any]:
    """Return the backend options for generating with a teacher's endpoint."""
    check_key_transport(teacher)
    key = {"api_key": teacher.api_key.reveal()} if teacher.api_key else {}
    return {
        **key,
        "concurrency": teacher.concurrency,
        "tries": teacher.tries,
        "read_timeout_s": teacher.timeout,
        "max_wait_s": teacher.max_wait,
    }


def _get_reference(settings: GenerationSettings, teacher: Teacher | None) -> str:
    if settings.model is not None:
        return settings.model
    if teacher is None:
        raise ValueError("neither the settings nor the job name a generating model")
    return name_teacher(teacher)


T = TypeVar("T")
B = TypeVar("B", bound=MicroBatch)


def tokenize_training_records(
    split: RecordSplit, tokenizer: Any, job: Job, *, max_tokens: int, include_prompt: bool
) -> tuple[list[TokenizedRecord], dict[str, Any]]:
    """Tokenize the training records and report counts.

    Raises:
        DataError: If no record has a loss position.
    """
    with job.phase("encode", len(split.train), "records") as progress:
        tokenized, counts = tokenize_records(
            tokenizer,
            split.train,
            max_tokens=max_tokens,
            include_prompt=include_prompt,
            on_done=progress.advance,
        )
    summary = {**counts, "passed_over": split.passed_over}
    if counts["records_cut"] or counts["records_left_out"] or split.passed_over:
        job.say(
            f"{counts['records_cut']} records were truncated to {max_tokens} tokens "
            f"({counts['tokens_cut']} tokens), {counts['records_left_out']} dropped, "
            f"skipped: {split.skipped or 'none'}"
        )
    if not tokenized:
        raise DataError(
            "no record has a token to train on",
            code="distill.no-positions",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {max_tokens}",
        )
    return tokenized, summary


def make_record_source(
    recipe: TrainingRecipe,
    tokenized: Sequence[TokenizedRecord],
    items: Sequence[T],
    load: Callable[[Sequence[T]], B],
    ids: Sequence[str],
    *,
    batch_size: int = 0,
) -> RecordSource[T, B]:
    """Return a micro-batch source in the order given by the recipe's seed.

    Args:
        recipe: Batch size, micro-batch size and seed.
        tokenized: Tokenized records of the student; their tokens and positions are counted.
        items: Inputs of ``load``, one per tokenized record.
        load: Builds a micro-batch.
        ids: Digest of everything that determines each item's loss; equal in a resumed run.
        batch_size: Records per step, if different from the recipe's.
    """
    return RecordSource(
        items,
        ids=ids,
        lengths=[len(record.ids) for record in tokenized],
        valid=[len(record.positions) for record in tokenized],
        load=load,
        batch_size=batch_size or recipe.train.batch_size,
        micro_tokens=recipe.train.micro_tokens,
        seed=recipe.seed,
    )


def select_reached(recipe: TrainingRecipe, items: Sequence[T], job: Job | None = None) -> list[T]:
    """Return the items that the recipe's steps reach, in their original order.

    A run shorter than one epoch, or a replay of some steps, reads only some, and needs no teacher
    outputs for the others. With rollouts all are needed, because the prompts in use are known only
    later.

    Args:
        recipe: Steps, batch size and seed.
        items: Items of ``make_record_source``, in the same order.
        job: Job that takes the steps; None takes all.
    """
    settings, count = recipe.train, len(items)
    steps: Sequence[int] = range(settings.count_steps(count))
    if job is not None:
        steps = list_taken_steps(job, len(steps))
    if len(steps) * settings.batch_size >= count:
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
    reached = {number for step in steps for number in order.chosen(step)}
    return [item for number, item in enumerate(items) if number in reached]


def add_context(settings: TeacherContextSettings, record: Record) -> Record | None:
    """Return the record as the teacher reads it, or None if the field is missing or empty."""
    prompt = extract_prompt(record)
    value = record.fields.get(settings.field) if settings.field is not None else ""
    if not prompt or not isinstance(value, str) or (settings.field and not value.strip()):
        return None
    text = settings.text.replace("{context}", value)
    index = len(prompt) - 1
    messages = list(record.messages)
    messages[index] = Message(messages[index].role, text + messages[index].content)
    return replace(record, messages=tuple(messages))


def encode_with_context(
    settings: TeacherContextSettings,
    tokenizer: Any,
    record: Record,
    student_tokens: EncodedConversation,
) -> EncodedConversation | None:
    """Tokenize a record with its context for the teacher.

    Returns:
        Tokens whose first targets equal those of ``student_tokens``; None without a context, if the
        record is too long with it, or if the answer is tokenized differently there.

    Raises:
        DataError: If the assistant's part of the conversation cannot be located.
    """
    record_with_context = add_context(settings, record)
    if record_with_context is None:
        return None
    encoded = encode_conversation(tokenizer, record_with_context, max_tokens=settings.max_tokens)
    count = len(student_tokens.targets)
    labels = [encoded.ids[index] for index in encoded.targets[:count]]
    wanted = [student_tokens.ids[index] for index in student_tokens.targets]
    return encoded if labels == wanted else None


def attach_teacher_context(
    settings: TeacherContextSettings,
    tokenizer: Any,
    records: Sequence[Record],
    tokenized: Sequence[TokenizedRecord],
) -> tuple[list[TokenizedRecord], dict[str, int]]:
    """Attach the teacher's reading with context to each tokenized record; drop and count failures.

    Args:
        settings: Context settings.
        tokenizer: Tokenizer of both models.
        records: Source records of ``tokenized``, in any order.
        tokenized: Student's tokenized records, with loss on the assistant's tokens only.

    Raises:
        DataError: If no record remains.
    """
    by_id = {record.id: record for record in records}
    results: list[TokenizedRecord] = []
    counts = {"without_context": 0, "too_long": 0, "other_tokens": 0}
    for student_record in tokenized:
        record = add_context(settings, by_id[student_record.record_id])
        if record is None:
            counts["without_context"] += 1
            continue
        encoded = encode_conversation(tokenizer, record, max_tokens=settings.max_tokens)
        positions = np.asarray([index - 1 for index in encoded.targets], dtype=np.int64)
        teacher_view = TokenizedRecord(
            student_record.record_id, np.asarray(encoded.ids, dtype=np.int64), positions
        )
        if encoded.truncated:
            counts["too_long"] += 1
        elif not np.array_equal(
            teacher_view.labels[: len(student_record.labels)], student_record.labels
        ):
            counts["other_tokens"] += 1
        else:
            truncated = replace(teacher_view, positions=positions[: len(student_record.labels)])
            results.append(replace(student_record, teacher_record=truncated))
    if not results:
        raise DataError(
            f"no record could be tokenized with its context: {counts}",
            code="distill.no-context",
            where="context",
            expected=f"records with text in fields.{settings.field}",
            next="check context.field, or raise context.max_tokens",
        )
    return results, counts
