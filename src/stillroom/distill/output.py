"""Student checkpoints, adapters and candidates, with their model card and provenance.

Teachers may be one or several, here or behind an endpoint; each is named with its license.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import nn

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.quantization import drop_quantization
from stillroom.checkpoints.writer import plan_tensors
from stillroom.distill.data.generated_text import extract_prompt
from stillroom.distill.data.preparation import PreparedData, select_reached
from stillroom.distill.recipe import DistillRecipe, StudentOutputSettings
from stillroom.jobs import Job, atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.objects import resolve_local
from stillroom.provenance import Parent, make_parent
from stillroom.records import Link, Origin, Record, combine_origins, find_license_warnings
from stillroom.train.lora import export_adapter, export_tensors

__all__ = [
    "ADAPTER",
    "TeacherInfo",
    "choose_candidate_steps",
    "describe_objective",
    "finish_card",
    "list_parents",
    "make_candidate_writer",
    "make_student_card",
    "make_student_origin",
    "warn_about_teachers",
    "write_adapter",
    "write_student",
]


CANDIDATES = "candidates"


ADAPTER = "adapter"


def choose_candidate_steps(steps: int, candidates: int) -> set[int]:
    """Return the steps after which a candidate is kept: even over the second half, the last one in.

    Fewer steps than candidates give fewer candidates.
    """
    first = steps - steps // 2
    return {
        first + round((steps - first) * at / max(candidates - 1, 1)) if candidates > 1 else steps
        for at in range(candidates)
    }


def write_student(
    model: nn.Module,
    folder: Path,
    like: Path,
    out: StudentOutputSettings,
    card: dict[str, Any],
    *,
    in_place: bool = False,
    writes: bool = True,
) -> str:
    """Write a student as an ordinary checkpoint, and return its fingerprint.

    Args:
        model: In memory; low-rank additions are merged into what is written.
        folder: Where to.
        like: The checkpoint that config and tokenizer come from.
        out: Types and shard sizes.
        card: What ``CheckpointWriter.write_card`` takes.
        in_place: The folder stands already and holds other things too.
        writes: Whether this process does; the others help to gather a sharded model.
    """
    tensors = dict(export_tensors(model))
    if not writes:
        return ""
    config = drop_quantization(json.loads((like / "config.json").read_text(encoding="utf-8")))
    with CheckpointWriter(
        folder,
        config=config,
        shard_size=out.shard_size,
        dtype=getattr(torch, out.dtype),
        plan=plan_tensors(tensors),
        in_place=in_place,
    ) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.copy_tokenizer(like)
        writer.write_card(**card)
    return writer.fingerprint


def write_adapter(
    model: nn.Module, folder: Path, base: str, out: StudentOutputSettings, *, writes: bool = True
) -> None:
    """Write a LoRA student's additions alone, as peft loads them.

    Args:
        model: With low-rank layers.
        folder: Where to; made if missing.
        base: The checkpoint that they are added to, as the recipe names it.
        out: The type they are stored in.
        writes: Whether this process does; the others help to gather a sharded model.
    """
    tensors, config = export_adapter(model, base)
    if not writes:
        return
    folder.mkdir(exist_ok=True)
    dtype = getattr(torch, out.dtype)
    data = save(
        {name: tensor.to("cpu", dtype) for name, tensor in tensors.items()}, {"format": "pt"}
    )
    with atomic_write(folder / "adapter_model.safetensors", "wb") as weights:
        weights.write(data)
    with atomic_write(folder / "adapter_config.json") as file:
        file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_candidate_writer(
    folder: Path,
    like: Path,
    steps: set[int],
    out: StudentOutputSettings,
    card: dict[str, Any],
    *,
    writes: bool = True,
) -> Callable[[int, nn.Module], None]:
    """Return what ``train`` calls after each step: it writes a candidate after the chosen ones.

    What a killed run left half-written is removed.
    """
    for stale in (folder / CANDIDATES).glob(".*"):
        shutil.rmtree(stale)

    def on_step(step: int, model: nn.Module) -> None:
        if step in steps:
            titled = {**card, "title": f"{card['title']}, step {step}"}
            place = folder / CANDIDATES / f"{step:06d}"
            write_student(model, place, like, out, titled, writes=writes)

    return on_step


class TeacherInfo(Protocol):
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


def list_parents(recipe: DistillRecipe, job: Job, teachers: Sequence[TeacherInfo]) -> list[Parent]:
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
    found.append(make_parent("records", resolve_local(recipe.records), job.out))
    if isinstance(recipe.student, str):
        path = resolve_checkpoint(recipe.student)
        fingerprint = Checkpoint.open(path).fingerprint
        found.append(Parent("student", recipe.student, fingerprint, "checkpoint"))
    return found


def make_student_origin(
    method: str, teachers: Sequence[TeacherInfo], records: Sequence[Record]
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


def make_student_card(
    recipe: DistillRecipe,
    teachers: Sequence[TeacherInfo],
    prepared: PreparedData,
) -> dict[str, Any]:
    """Return what the cards of a job say: what was lowered, on what, under which license.

    Args:
        recipe: Of the job.
        teachers: At least one.
        prepared: What is learned from.
    """
    from_whom = "\n".join(_describe_teacher(teacher) for teacher in teachers)
    names = ", ".join(teacher.name for teacher in teachers)
    licenses = combine_origins(Origin(license=teacher.license) for teacher in teachers)
    return {
        "title": f"A student of {names}",
        "body": (
            f"Distilled by Stillroom with {describe_objective(recipe)} on "
            f"{_describe_records(recipe, prepared)}, seed {recipe.seed}, from:\n\n{from_whom}\n\n"
        ),
        "license": licenses.license,
        "base_models": [teacher.name for teacher in teachers],
        "relation": "finetune",
        "tags": ["distillation"],
    }


def warn_about_teachers(teachers: Sequence[TeacherInfo], job: Job) -> None:
    """Say what of the teachers' licenses and weights a user should know before training."""
    for teacher in teachers:
        if teacher.about.get("weights"):
            job.say(
                f"{teacher.name}: {teacher.about['weights']}; it teaches what those weights say"
            )
    licenses = [(teacher.name, teacher.license) for teacher in teachers]
    for line in find_license_warnings(licenses, "the teachers", "training on their words"):
        job.say(line)


def finish_card(
    card: Mapping[str, Any], closing: str, *, measured: bool, candidates: int
) -> dict[str, Any]:
    """Return the card of the finished student, which alone has other files beside it.

    Args:
        card: From ``make_student_card``.
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


def describe_objective(recipe: DistillRecipe) -> str:
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


def _describe_records(recipe: DistillRecipe, prepared: PreparedData) -> str:
    """Return how many records the steps reached, of how many prompts, and what else was learned."""
    count, read = len(prepared.lessons), len(select_reached(recipe, prepared.lessons))
    said = f"{count} records"
    if read < count:
        said = f"{read} of {said} (as many as its steps reach)"
    prompts = {extract_prompt(record) or (record.id,) for record in prepared.records}
    if len(prompts) < len(prepared.records):
        said += f" of {len(prompts)} prompts"
    policy = recipe.rollouts
    if policy is not None and not policy.learns_from_records:
        return f"text alone that `{policy.method_name()}` wrote in training from {said}"
    if policy is not None:
        return f"{said}, and text that `{policy.method_name()}` wrote in training from them"
    return f"{said} ({prepared.counts['tokens']} tokens)" if read == count else said


def _describe_teacher(teacher: TeacherInfo) -> str:
    extra = "".join(f"; {teacher.about[key]}" for key in ("weights",) if teacher.about.get(key))
    license = teacher.license or "license unknown"
    return f"- {teacher.name} (fingerprint `{teacher.fingerprint[:16]}`, {license}{extra})"
