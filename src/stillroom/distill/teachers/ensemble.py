"""Teachers of a job with their weights, and the assignment of records to teachers.

Several teach by weight, every record by all of them, or by source, every record by the one whose
source it names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.settings import (
    REMAINING_SOURCES,
    EndpointTeacherSettings,
    TeacherChoice,
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
    """One teacher, the weight of its words, and the source whose records it teaches."""

    teacher: AnyTeacher
    weight: float = 1.0
    source: str | None = None


def require_local(teacher: AnyTeacher | TextOnlyTeacher) -> LocalTeacher:
    """Return a teacher whose weights are here.

    Raises:
        RecipeError: If it is behind a server.
    """
    if isinstance(teacher, LocalTeacher):
        return teacher
    raise RecipeError(
        f"{teacher.name} is behind a server: its weights are out of reach",
        code="distill.server-target",
        where="teacher",
        expected="a checkpoint",
        next="name a checkpoint as student, and no setting that needs the teacher's weights",
    )


@contextmanager
def open_teacher(choice: str | EndpointTeacherSettings, job: Job) -> Iterator[AnyTeacher]:
    """Open one teacher; an endpoint's connections are closed after the body."""
    if isinstance(choice, str):
        yield LocalTeacher.find(choice, job)
        return
    found = EndpointTeacher.find(choice, job)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def open_teachers(choice: TeacherChoice, job: Job) -> Iterator[list[WeightedTeacher]]:
    """Open all teachers that a recipe names, in order; none that only writes."""
    shares = choice if isinstance(choice, tuple) else (WeightedTeacherSettings(teacher=choice),)
    if isinstance(choice, EndpointTeacherSettings) and choice.tokenizer is None:
        shares = ()
    with _open_teachers(list(shares), job) as chairs:
        yield chairs


def count_rows_shared_by_all(
    chairs: Sequence[WeightedTeacher], student: Any, student_tokenizer: Any
) -> int:
    """Return how many tokens all teachers share with the student.

    Raises:
        CheckpointError: If one has another vocabulary; it is named.
    """
    rows = LMHead.of(student).rows
    for chair in chairs:
        teacher = chair.teacher
        if isinstance(teacher, LocalTeacher):
            rows = min(rows, teacher.head_rows)
            if len(chairs) > 1:
                teacher.unload()  # no two are in memory together
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
                if len(chairs) == 1
                else "leave that teacher out: several teachers need one vocabulary",
            ) from error
    return rows


def assign_records(
    chairs: Sequence[WeightedTeacher], records: Sequence[Record], field: str
) -> dict[str, tuple[int, ...]]:
    """Return which teachers teach each record, by its id.

    Args:
        chairs: All of them.
        records: To be taught.
        field: Of a record, that names its source; ``origin`` is what its origin says: human,
            synthetic or unknown.

    Raises:
        DataError: If a record's source has no teacher; such records are counted by source.
    """
    if all(chair.source is None for chair in chairs):
        return {record.id: tuple(range(len(chairs))) for record in records}
    seats = {chair.source: at for at, chair in enumerate(chairs)}
    found: dict[str, tuple[int, ...]] = {}
    lost: Counter[str] = Counter()
    for record in records:
        source = _get_source(record, field)
        seat = seats.get(source, seats.get(REMAINING_SOURCES))
        if seat is None:
            lost[source] += 1
        else:
            found[record.id] = (seat,)
    if lost:
        told = ", ".join(f"{count} of {source or 'no source'!r}" for source, count in lost.items())
        raise DataError(
            f"records have no teacher: {told:.200}",
            code="distill.no-teacher",
            where=f"records, {'origin' if field == 'origin' else f'fields.{field}'}",
            expected=f"one of: {', '.join(sorted(filter(None, seats)))}",
            next=(
                f"give a teacher source: '{REMAINING_SOURCES}' for the others, or set "
                "source_field to the field that names the source"
            ),
        )
    return found


def _get_source(record: Record, field: str) -> str:
    return record.origin.kind if field == "origin" else str(record.fields.get(field, ""))


@contextmanager
def _open_teachers(
    shares: list[WeightedTeacherSettings], job: Job
) -> Iterator[list[WeightedTeacher]]:
    if not shares:
        yield []
        return
    with open_teacher(shares[0].teacher, job) as teacher, _open_teachers(shares[1:], job) as others:
        yield [WeightedTeacher(teacher, shares[0].weight, shares[0].source), *others]
