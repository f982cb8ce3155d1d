"""What a student comes from, in words and digests: its parents, its origin, its card.

Teachers may be one or several, here or behind an endpoint; each is named with its license.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stillroom.checkpoints import Checkpoint
from stillroom.distill.lessons import read_in_steps
from stillroom.distill.preparing import Prepared
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.sequence import prompt_of
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint
from stillroom.objects import local
from stillroom.provenance import Parent, make_parent
from stillroom.records import Link, Origin, Record, combine_origins, warn_of_licenses

__all__ = [
    "KnownTeacher",
    "close_card",
    "list_parents",
    "say_objective",
    "student_card",
    "student_origin",
    "warn_of_teachers",
]


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
    prepared: Prepared,
) -> dict[str, Any]:
    """Return what the cards of a job say: what was lowered, on what, under which license.

    Args:
        recipe: Of the job.
        teachers: At least one.
        prepared: What is learned from.
    """
    from_whom = "\n".join(_say_teacher(teacher) for teacher in teachers)
    names = ", ".join(teacher.name for teacher in teachers)
    licenses = combine_origins(Origin(license=teacher.license) for teacher in teachers)
    return {
        "title": f"A student of {names}",
        "body": (
            f"Distilled by Stillroom with {say_objective(recipe)} on "
            f"{_say_records(recipe, prepared)}, seed {recipe.seed}, from:\n\n{from_whom}\n\n"
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


def close_card(
    card: Mapping[str, Any], closing: str, *, measured: bool, candidates: int
) -> dict[str, Any]:
    """Return the card of the finished student, which alone has other files beside it.

    Args:
        card: From ``student_card``.
        closing: Says what ``fidelity.html`` tells.
        measured: Whether anything was.
        candidates: How many checkpoints of the run were kept.
    """
    kept = (
        f" `candidates/` holds {candidates} checkpoint{'s' * (candidates > 1)} of the second half "
        "of the run, its last step among them."
    )
    told = closing if measured else "It was not measured on held-out records."
    return {**card, "body": card["body"] + told + kept * bool(candidates)}


def say_objective(recipe: DistillRecipe) -> str:
    """Return in words what was lowered; what has weight 0 was not."""
    main = recipe.crossing or recipe.method
    terms = [
        (f"`{main.method_name()}`", main.kd_weight),
        ("cross-entropy with the text's own tokens", main.ce_weight),
        *((f"`{one.method_name()}`", one.weight) for one in recipe.features),
    ]
    held = [(name, weight) for name, weight in terms if weight]
    if len(held) == 1:
        return f"the objective {held[0][0]}"
    told = ", ".join(f"{name} (weight {weight:g})" for name, weight in held)
    return f"the objectives {told}" if held else "no objective (all weights are 0)"


def _say_records(recipe: DistillRecipe, prepared: Prepared) -> str:
    """Return how many records the steps reached, of how many prompts, and what else was learned."""
    count, read = len(prepared.lessons), len(read_in_steps(recipe, prepared.lessons))
    said = f"{count} records"
    if read < count:
        said = f"{read} of {said} (as many as its steps reach)"
    prompts = {prompt_of(record) or (record.id,) for record in prepared.records}
    if len(prompts) < len(prepared.records):
        said += f" of {len(prompts)} prompts"
    policy = recipe.rollouts
    if policy is not None and not policy.learns_from_records:
        return f"text alone that `{policy.method_name()}` wrote in training from {said}"
    if policy is not None:
        return f"{said}, and text that `{policy.method_name()}` wrote in training from them"
    return f"{said} ({prepared.counts['tokens']} tokens)" if read == count else said


def _say_teacher(teacher: KnownTeacher) -> str:
    extra = "".join(f"; {teacher.about[key]}" for key in ("weights",) if teacher.about.get(key))
    license = teacher.license or "license unknown"
    return f"- {teacher.name} (fingerprint `{teacher.fingerprint[:16]}`, {license}{extra})"
