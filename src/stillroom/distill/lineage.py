"""What a student comes from, in words and digests: its parents, its origin, its card.

Teachers may be one or several, here or behind an endpoint; each is named with its license.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stillroom.checkpoints import Checkpoint
from stillroom.distill.recipe import DistillRecipe
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint
from stillroom.objects import local
from stillroom.provenance import Parent, make_parent
from stillroom.records import Link, Origin, Record, combine_origins, warn_of_licenses

__all__ = ["KnownTeacher", "list_parents", "student_card", "student_origin", "warn_of_teachers"]


class KnownTeacher(Protocol):
    """What lineage asks of a teacher, wherever it is."""

    @property
    def name(self) -> str:
        """A short name for people."""

    @property
    def reference(self) -> str:
        """How the recipe calls it."""

    @property
    def fingerprint(self) -> str:
        """What identifies its weights, or the endpoint that serves them."""

    @property
    def license(self) -> str:
        """Its license; empty where nobody says."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What else is known of it: quantized weights, an endpoint."""


def list_parents(recipe: DistillRecipe, job: Job, teachers: Sequence[KnownTeacher]) -> list[Parent]:
    """Return all that the student is made from: teachers, records, and a student to start from."""
    found = [
        Parent(
            "teacher",
            teacher.reference,
            teacher.fingerprint,
            "endpoint" if teacher.about.get("endpoint") else "checkpoint",
        )
        for teacher in teachers
    ]
    found.append(make_parent("records", local(recipe.records), job.out))
    if isinstance(recipe.student, str):
        path = resolve_checkpoint(recipe.student)
        fingerprint = Checkpoint.open(path).fingerprint
        found.append(Parent("student", recipe.student, fingerprint, "checkpoint"))
    return found


def student_origin(
    method: str, teachers: Sequence[KnownTeacher], records: Sequence[Record]
) -> Origin:
    """Return the student's origin: synthetic, by this method, under all licenses involved."""
    licensed = combine_origins(
        [
            *(record.origin for record in records),
            *(Origin("unknown", license=teacher.license) for teacher in teachers),
        ]
    )
    links = tuple(Link(method, teacher.fingerprint) for teacher in teachers)
    return Origin("synthetic", links, licensed.license)


def student_card(
    recipe: DistillRecipe,
    teachers: Sequence[KnownTeacher],
    counts: Mapping[str, Any],
    *,
    loss: str,
    closing: str = "",
) -> dict[str, Any]:
    """Return what the student's card says: what made it, from what, under which license.

    Args:
        recipe: Of the job.
        teachers: At least one.
        counts: Of records and tokens.
        loss: What was lowered, in the recipe's words.
        closing: What the reader should know of the folder's other files.
    """
    from_whom = "\n".join(_say_teacher(teacher) for teacher in teachers)
    names = ", ".join(teacher.name for teacher in teachers)
    licenses = combine_origins(Origin(license=teacher.license) for teacher in teachers)
    return {
        "title": f"A student of {names}",
        "body": (
            f"Distilled by Stillroom with the objective `{loss}` on {counts['records']} records "
            f"({counts['tokens']} tokens), seed {recipe.seed}, from:\n\n{from_whom}\n\n"
            + (closing or _CLOSING)
        ),
        "license": licenses.license,
        "base_models": [teacher.name for teacher in teachers],
        "relation": "finetune",
        "tags": ["distillation"],
    }


def warn_of_teachers(teachers: Sequence[KnownTeacher], job: Job) -> None:
    """Say what of the teachers' licenses and weights a user should know before training."""
    for teacher in teachers:
        if teacher.about.get("weights"):
            job.say(
                f"{teacher.name}: {teacher.about['weights']}; it teaches what those weights say"
            )
    licenses = [(teacher.name, teacher.license) for teacher in teachers]
    for line in warn_of_licenses(licenses, "the teachers", "training on their words"):
        job.say(line)


_CLOSING = (
    "`fidelity.html` says how near it is to its teacher on held-out records; "
    "`candidates/` holds earlier steps of the same run."
)


def _say_teacher(teacher: KnownTeacher) -> str:
    extra = "".join(f"; {teacher.about[key]}" for key in ("weights",) if teacher.about.get(key))
    license = teacher.license or "license unknown"
    return f"- {teacher.name} (fingerprint `{teacher.fingerprint[:16]}`, {license}{extra})"
