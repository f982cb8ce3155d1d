"""Targets of teachers that are run or queried before training, in one ``logit_cache`` for each.

Each teacher is run or queried for its records and the held-out ones, so that only one is in memory
at a time. Distances to a teacher are measured on its stored top tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import attach_teacher_context
from stillroom.distill.data.tokenized import TokenizedRecord, tokenize_records
from stillroom.distill.evaluation.metrics import RecordMetrics, summarize_models
from stillroom.distill.evaluation.teacher_distance import (
    TOP_K_NOTE,
    TeacherReference,
    TopKReference,
)
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.settings import CachedTargetSettings, TopKTargetSettings
from stillroom.distill.teachers.ensemble import AnyTeacher, WeightedTeacher
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.distill.trainers.student import DistillationContext
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.train.data import RecordSplit

if TYPE_CHECKING:
    from stillroom.distill.recipes import TrainingRecipe

__all__ = [
    "CLOSING",
    "StoredTargets",
    "TeacherRecords",
    "describe_teacher",
    "encode_held_out",
    "report_by_teacher",
    "store_targets",
]

CLOSING = "`fidelity.html` says how near it is to each teacher on held-out records."
"""Text of the model card on the folder's other files, if the student was evaluated."""


@dataclass(frozen=True)
class TeacherRecords:
    """A teacher, the training records whose distributions are learned, and the held-out ones."""

    weighted: WeightedTeacher
    training: Sequence[TokenizedRecord]
    held_out: Sequence[TokenizedRecord]


@dataclass(frozen=True)
class StoredTargets:
    """Caches of the training records, their headers, and references for evaluation."""

    caches: list[LogitCache] = field(default_factory=list)
    headers: list[dict[str, Any]] = field(default_factory=list)
    references: list[TeacherReference] = field(default_factory=list)


@contextmanager
def store_targets(
    teachers: Sequence[TeacherRecords],
    context: DistillationContext,
    targets: CachedTargetSettings,
    *,
    temperature: float = 1.0,
) -> Iterator[StoredTargets]:
    """Store the outputs of each teacher, one after the other, and yield the open caches.

    Held-out records are measured with top-k targets at temperature 1.

    Args:
        teachers: Teachers with their records.
        context: Student, job and number of shared vocabulary rows.
        targets: Form of the stored distributions.
        temperature: Temperature of the stored distributions.

    Raises:
        BackendError: If an endpoint cannot be reached or returns too little.
        Cancelled: If cancellation was requested; stored outputs are kept.
    """
    job, rows, precision = context.job, context.rows, context.precision
    seed = context.recipe.seed
    base = Path(targets.cache) if targets.cache else job.scratch / "cache"
    k = targets.k if isinstance(targets, TopKTargetSettings) else TopKTargetSettings().k
    measured = TopKTargetSettings(k=min(k, rows), logprob_dtype=targets.logprob_dtype)
    each = [records.weighted.teacher for records in teachers]
    headers = _align_widths(
        [
            teacher.header(targets, rows, precision, temperature=temperature, seed=seed)
            for teacher in each
        ]
    )
    held_headers = _align_widths([teacher.header(measured, rows, precision) for teacher in each])
    stored = StoredTargets()
    with ExitStack() as stack:
        for number, (records, teacher) in enumerate(zip(teachers, each, strict=True)):
            folder = base if len(each) == 1 else base / teacher.fingerprint[:16]
            cache = stack.enter_context(
                LogitCache.open(folder, headers[number], on_damage=job.warn_of_damage)
            )
            held_folder = job.scratch / f"held-out-{number}"
            held_cache = stack.enter_context(
                LogitCache.open(held_folder, held_headers[number], on_damage=job.warn_of_damage)
            )
            for open_cache, part in ((cache, records.training), (held_cache, records.held_out)):
                teacher.capture([record.teacher_view for record in part], open_cache, job)
                open_cache.verify()
            stored.caches.append(cache)
            stored.headers.append(cache.header.model_dump())
            reference = TopKReference(teacher.name, records.held_out, held_cache)
            stored.references.append(reference)
            teacher.unload()
        yield stored


def _align_widths(headers: Sequence[Any]) -> list[Any]:
    """Return headers of one width: rows of several caches are combined in a batch."""
    width = min(header.width for header in headers)
    return [header.model_copy(update={"width": width}) for header in headers]


def encode_held_out(
    recipe: TrainingRecipe,
    split: RecordSplit,
    tokenizer: Any,
    job: Job,
) -> list[TokenizedRecord]:
    """Tokenize the held-out records to measure, with context if the teacher reads it."""
    records = split.held_out[: recipe.fidelity.records]
    context = recipe.find_context()
    tokenized, _ = tokenize_records(
        tokenizer, records, max_tokens=recipe.max_tokens, include_prompt=False
    )
    if context is None or not tokenized:
        return tokenized
    try:
        return attach_teacher_context(context, tokenizer, records, tokenized)[0]
    except DataError:  # none of the few measured records; training records are checked before
        job.warn("no held-out record fits with its context: none is measured")
        return []


def report_by_teacher(
    teachers: Sequence[AnyTeacher],
    metrics: Mapping[str, Sequence[RecordMetrics[Any]]],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the content of fidelity.json: the distances to each teacher's stored tokens."""
    parts = [
        summarize_models({name: figures[number] for name, figures in metrics.items()}, seed)
        for number in range(len(next(iter(metrics.values()), ())))
    ]
    named = [{"teacher": teachers[number].name, **part} for number, part in enumerate(parts)]
    first = parts[0] if parts else {}
    return {"kind": "top_k", "note": TOP_K_NOTE, **first, "teachers": named}


def describe_teacher(weighted: WeightedTeacher) -> dict[str, Any]:
    """Return the details of a teacher for artifact.json."""
    teacher = weighted.teacher
    description: dict[str, Any] = {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "license": teacher.license,
        "weight": weighted.weight,
        "source": weighted.source,
        "about": teacher.about,
    }
    if isinstance(teacher, LocalTeacher):
        description["parameters"] = teacher.checkpoint.parameters
    return description
