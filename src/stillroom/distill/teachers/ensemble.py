"""Ensemble of teachers (multi-teacher): their weights, and which records each one teaches.

Several teachers are combined either by weight, every record by all of them, or by source, every
record by the teacher of its source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.settings import (
    REMAINING_SOURCES,
    EndpointTeacherSettings,
    WeightedTeacherSettings,
)
from stillroom.distill.teachers.endpoint import EndpointTeacher, TextOnlyTeacher
from stillroom.distill.teachers.local import LocalTeacher, check_shared_vocabulary
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.jobs import Job
from stillroom.records import Record

__all__ = [
    "AnyTeacher",
    "WeightedTeacher",
    "assign_records",
    "count_rows_shared_by_all",
    "open_teacher",
    "open_teachers",
    "require_local",
]

AnyTeacher = LocalTeacher | EndpointTeacher


@dataclass(frozen=True)
class WeightedTeacher:
    """A teacher with its weight in the loss, and the source of its records."""

    teacher: AnyTeacher
    weight: float = 1.0
    source: str | None = None


def require_local(teacher: AnyTeacher | TextOnlyTeacher) -> LocalTeacher:
    """Return a local teacher.

    Raises:
        RecipeError: If it is behind an endpoint.
    """
    if isinstance(teacher, LocalTeacher):
        return teacher
    raise RecipeError(
        f"{teacher.name} is behind an endpoint: its weights are not accessible",
        code="distill.server-target",
        where="teacher",
        expected="a checkpoint",
        next="set student to a checkpoint, and no setting that needs the teacher's weights",
    )


@contextmanager
def open_teacher(choice: str | EndpointTeacherSettings, job: Job) -> Iterator[AnyTeacher]:
    """Open one teacher; connections of an endpoint are closed after the body."""
    if isinstance(choice, str):
        yield LocalTeacher.find(choice, job)
        return
    with closing(EndpointTeacher.find(choice, job)) as teacher:
        yield teacher


@contextmanager
def open_teachers(
    shares: Sequence[WeightedTeacherSettings], job: Job
) -> Iterator[list[WeightedTeacher]]:
    """Open several teachers, in order; connections are closed after the body."""
    with ExitStack() as stack:
        yield [
            WeightedTeacher(
                stack.enter_context(open_teacher(share.teacher, job)), share.weight, share.source
            )
            for share in shares
        ]


def count_rows_shared_by_all(
    teachers: Sequence[WeightedTeacher], student: Any, student_tokenizer: Any
) -> int:
    """Return the number of vocabulary rows that all teachers share with the student.

    Raises:
        CheckpointError: If a teacher has another vocabulary; it is named.
    """
    rows = LMHead.of(student).rows
    for weighted in teachers:
        teacher = weighted.teacher
        if isinstance(teacher, LocalTeacher):
            rows = min(rows, teacher.head_rows)
            if len(teachers) > 1:
                teacher.unload()  # only one is in memory at a time
        try:
            check_shared_vocabulary(teacher.tokenizer, student_tokenizer, rows)
        except CheckpointError as error:
            problem = error.problems[0]
            raise CheckpointError(
                f"{teacher.name}: {problem.what}",
                code=problem.code,
                where="teacher",
                expected=problem.expected,
                next=problem.next
                if len(teachers) == 1
                else "remove that teacher: several teachers need one vocabulary",
            ) from error
    return rows


def assign_records(
    teachers: Sequence[WeightedTeacher], records: Sequence[Record], field: str
) -> dict[str, tuple[int, ...]]:
    """Return the indices of each record's teachers, by record id.

    Args:
        teachers: All teachers.
        records: Records to assign.
        field: Field of a record with its source; ``origin`` uses the kind of its origin: human,
            synthetic or unknown.

    Raises:
        DataError: If a record's source has no teacher; such records are counted by source.
    """
    if all(teacher.source is None for teacher in teachers):
        return {record.id: tuple(range(len(teachers))) for record in records}
    by_source = {teacher.source: number for number, teacher in enumerate(teachers)}
    assigned: dict[str, tuple[int, ...]] = {}
    lost: Counter[str] = Counter()
    for record in records:
        source = record.origin.kind if field == "origin" else str(record.fields.get(field, ""))
        index = by_source.get(source, by_source.get(REMAINING_SOURCES))
        if index is None:
            lost[source] += 1
        else:
            assigned[record.id] = (index,)
    if lost:
        counts = ", ".join(
            f"{count} of {source or 'no source'!r}" for source, count in lost.items()
        )
        raise DataError(
            f"records have no teacher: {counts:.200}",
            code="distill.no-teacher",
            where=f"records, {'origin' if field == 'origin' else f'fields.{field}'}",
            expected=f"one of: {', '.join(sorted(filter(None, by_source)))}",
            next=(
                f"set source: '{REMAINING_SOURCES}' for one teacher, or set source_field to the "
                "field with the source"
            ),
        )
    return assigned
