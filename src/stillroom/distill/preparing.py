"""From the records of a job to the lessons that are learned: written, explained, read in context.

Without ``sequence``, ``rationale`` and ``context`` the records are encoded as they are. Who writes
is opened, asked and closed before the teacher is loaded, so that one model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.distill.context import hear_with_context
from stillroom.distill.encode import Lesson
from stillroom.distill.endpoint_opening import refuse_open_key
from stillroom.distill.lessons import Split, make_lessons
from stillroom.distill.rationale import Tasks, make_tasks, write_rationales
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.sequence import WriterSettings, write_sequences
from stillroom.distill.teacher_settings import ServerTeacher, teacher_reference
from stillroom.jobs import Job
from stillroom.models import open_text_model, resolve_checkpoint
from stillroom.provenance import Parent
from stillroom.records import Record, write_records

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["WRITTEN", "Prepared", "prepare_lessons", "write_tasks", "writer_parents", "writers_of"]

WRITTEN = "written.jsonl"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is learned from: records, the same as tokens, and what was counted on the way."""

    records: list[Record]
    lessons: list[Lesson]
    counts: dict[str, Any]


def prepare_lessons(recipe: DistillRecipe, split: Split, tokenizer: Any, job: Job) -> Prepared:
    """Write, explain and encode the training records as the recipe asks for.

    Raises:
        DataError: If nothing is left to learn from.
        BackendError: If a writer fails.
        Cancelled: If the user asked for it; what was written is kept.
    """
    tasks, counts = write_tasks(recipe, split, job)
    lessons, encoded = _encode(recipe, split, tasks, tokenizer, job)
    if recipe.context is not None:
        lessons, counts["context"] = hear_with_context(
            recipe.context, tokenizer, tasks.learned, lessons
        )
        job.say(f"{len(lessons)} records are read in context; left out: {counts['context']}")
    return Prepared(tasks.learned, lessons, {**encoded, **counts})


def write_tasks(recipe: DistillRecipe, split: Split, job: Job) -> tuple[Tasks, dict[str, Any]]:
    """Return the records to learn from, written and explained as the recipe asks for, and counts.

    Records that a model wrote are left in ``output/written.jsonl`` with their origin.

    Raises:
        DataError: If too little was written.
        BackendError: If a writer fails.
        Cancelled: If the user asked for it; what was written is kept.
    """
    records, counts = split.train, dict[str, Any]()
    if recipe.sequence is not None:
        with _opened(recipe.sequence, recipe, job) as writer:
            kept = write_sequences(recipe.sequence, records, writer, job, seed=recipe.seed)
        records, counts["sequences"] = kept.records, kept.to_json()
    tasks = Tasks(answers=list(records))
    if recipe.rationale is not None:
        if recipe.rationale.write is not None:
            with _opened(recipe.rationale.write, recipe, job) as writer:
                records = write_rationales(
                    recipe.rationale, recipe.rationale.write, records, writer, job, seed=recipe.seed
                )
        tasks = make_tasks(recipe.rationale, records)
        counts["rationales"] = tasks.to_json()
        job.say(f"rationales: {tasks.to_json()}")
    if writers_of(recipe):
        write_records(job.output / WRITTEN, records)
    return tasks, counts


def writers_of(recipe: DistillRecipe) -> list[str]:
    """Return the references of the models that write what is learned."""
    settings = [recipe.sequence, recipe.rationale.write if recipe.rationale else None]
    return list(dict.fromkeys(_reference(one, recipe) for one in settings if one is not None))


def writer_parents(recipe: DistillRecipe) -> list[Parent]:
    """Return the writers as parents of the job's artifact; an endpoint is known by its name."""
    found = []
    for reference in writers_of(recipe):
        fingerprint = ""
        if "://" not in reference and not reference.startswith("scripted:"):
            fingerprint = Checkpoint.open(resolve_checkpoint(reference)).fingerprint
        found.append(Parent("writer", reference, fingerprint or reference, "checkpoint"))
    return found


def _encode(
    recipe: DistillRecipe, split: Split, tasks: Tasks, tokenizer: Any, job: Job
) -> tuple[list[Lesson], dict[str, Any]]:
    def encode(records: Sequence[Record]) -> tuple[list[Lesson], dict[str, Any]]:
        return make_lessons(recipe, replace(split, train=list(records)), tokenizer, job)

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
def _opened(settings: WriterSettings, recipe: DistillRecipe, job: Job) -> Iterator[TextModel]:
    teacher = recipe.teacher
    is_served = settings.model is None and isinstance(teacher, ServerTeacher)
    writer = open_text_model(
        _reference(settings, recipe),
        backend=settings.backend,
        job=job,
        num_threads=settings.num_threads,
        say=job.say,
        **(_patience(teacher) if is_served and isinstance(teacher, ServerTeacher) else {}),
    )
    try:
        yield writer
    finally:
        writer.close()


def _patience(teacher: ServerTeacher) -> dict[str, Any]:
    """Return how a teacher's server is asked, as its backend takes it."""
    refuse_open_key(teacher)
    key = {"api_key": teacher.api_key.reveal()} if teacher.api_key else {}
    return {
        **key,
        "concurrency": teacher.concurrency,
        "tries": teacher.tries,
        "read_timeout_s": teacher.timeout,
        "max_wait_s": teacher.max_wait,
    }


def _reference(settings: WriterSettings, recipe: DistillRecipe) -> str:
    return settings.model or teacher_reference(recipe.teacher)
