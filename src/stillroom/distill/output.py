"""Student checkpoints, adapters and candidates, with their model card and provenance.

There may be one or several teachers, local or behind an endpoint; the card lists each with its
license.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors.torch import save
from torch import nn

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.digests import describe_equal_models
from stillroom.checkpoints.quantization import drop_quantization
from stillroom.checkpoints.writer import plan_tensors
from stillroom.distill.data.generated_text import extract_prompt
from stillroom.distill.data.preparation import PreparedData, select_reached
from stillroom.distill.interfaces import (
    CrossTokenizerLoss,
    DistillationObjective,
    FeatureLoss,
    RolloutPolicy,
)
from stillroom.distill.recipes import TrainingRecipe
from stillroom.distill.settings import StudentOutputSettings
from stillroom.errors import count_noun
from stillroom.jobs import Job, atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.objects import resolve_local
from stillroom.provenance import Parent, make_parent
from stillroom.records import Link, Origin, Record, combine_origins, find_license_warnings
from stillroom.train.lora import choose_dtype, describe_unchanged, export_adapter, export_tensors

if TYPE_CHECKING:
    from stillroom.distill.teachers.endpoint import EndpointTeacher, TextOnlyTeacher
    from stillroom.distill.teachers.local import LocalTeacher

_Teacher: TypeAlias = "LocalTeacher | EndpointTeacher | TextOnlyTeacher"

__all__ = [
    "ADAPTER",
    "choose_candidate_steps",
    "describe_objective",
    "finish_card",
    "list_parents",
    "make_candidate_writer",
    "make_student_card",
    "make_student_origin",
    "name_method",
    "warn_about_teachers",
    "write_adapter",
    "write_student",
]

CANDIDATES = "candidates"
ADAPTER = "adapter"


def choose_candidate_steps(steps: int, candidates: int) -> set[int]:
    """Return the steps after which a candidate is kept: evenly over the second half, with the last.

    Fewer steps than candidates give fewer candidates.
    """
    first = steps - steps // 2
    return {
        first + round((steps - first) * index / max(candidates - 1, 1)) if candidates > 1 else steps
        for index in range(candidates)
    }


def write_student(
    model: nn.Module,
    folder: Path,
    like: Path,
    output: StudentOutputSettings,
    card: dict[str, Any],
    *,
    in_place: bool = False,
    writes: bool = True,
    warn: Callable[[str], None] | None = None,
) -> str:
    """Write a student as a standard checkpoint, and return its fingerprint.

    The card says so if its weights, as stored, are those of the checkpoint it is written like.

    Args:
        model: Model in memory; low-rank updates are merged into the written weights.
        folder: Destination.
        like: Checkpoint from which config and tokenizer are copied.
        output: Dtype and shard size.
        card: Arguments of ``CheckpointWriter.write_card``.
        in_place: Whether the folder exists and contains other files.
        writes: Whether this process writes; others only help to gather a sharded model.
        warn: Receives a line if the weights are those of ``like``.
    """
    tensors = dict(export_tensors(model))
    if not writes:
        return ""
    dtype = choose_dtype(output.dtype, model, tensors)
    line = describe_unchanged(tensors, Checkpoint.open(like), dtype)
    if line:
        card = {**card, "body": f"**{line.capitalize()}.** {card['body']}"}
        if warn is not None:
            warn(line)
    config = drop_quantization(json.loads((like / "config.json").read_text(encoding="utf-8")))
    with CheckpointWriter(
        folder,
        config=config,
        shard_size=output.shard_size,
        dtype=dtype,
        plan=plan_tensors(tensors),
        in_place=in_place,
    ) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.copy_tokenizer(like)
        writer.write_card(**card)
    return writer.fingerprint


def write_adapter(model: nn.Module, folder: Path, base: str, *, writes: bool = True) -> None:
    """Write the low-rank weights of a LoRA student in peft's format, in float32.

    Merged into the base and rounded as the written student is, they give its weights; factors that
    had been rounded themselves would not.

    Args:
        model: Model with low-rank layers.
        folder: Destination; created if missing.
        base: Reference of the base checkpoint, as in the recipe.
        writes: Whether this process writes; others only help to gather a sharded model.
    """
    tensors, config = export_adapter(model, base)
    if not writes:
        return
    folder.mkdir(exist_ok=True)
    data = save({name: tensor.float().cpu() for name, tensor in tensors.items()}, {"format": "pt"})
    with atomic_write(folder / "adapter_model.safetensors", "wb") as weights:
        weights.write(data)
    with atomic_write(folder / "adapter_config.json") as file:
        file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_candidate_writer(
    folder: Path,
    like: Path,
    steps: set[int],
    output: StudentOutputSettings,
    card: dict[str, Any],
    *,
    writes: bool = True,
) -> Callable[[int, nn.Module], None]:
    """Return a callback of ``train`` that writes a candidate after selected steps.

    Incomplete candidates of an interrupted run are removed.
    """
    for stale in (folder / CANDIDATES).glob(".*"):
        shutil.rmtree(stale)

    def on_step(step: int, model: nn.Module) -> None:
        if step in steps:
            titled = {**card, "title": f"{card['title']}, step {step}"}
            destination = folder / CANDIDATES / f"{step:06d}"
            write_student(model, destination, like, output, titled, writes=writes)

    return on_step


def list_parents(
    records: str, job: Job, teachers: Sequence[_Teacher], *, student: str | None = None
) -> list[Parent]:
    """Return the parents of the student: teachers, records, and an initial student."""
    parents = [
        Parent(
            "teacher",
            teacher.reference,
            teacher.fingerprint,
            "endpoint" if teacher.about.get("endpoint") else "checkpoint",
        )
        for teacher in teachers
    ]
    parents.append(make_parent("records", resolve_local(records), job.out))
    if student is not None:
        fingerprint = Checkpoint.open(resolve_checkpoint(student)).fingerprint
        parents.append(Parent("student", student, fingerprint, "checkpoint"))
    return parents


def make_student_origin(
    method: str,
    teachers: Sequence[_Teacher],
    records: Sequence[Record],
    student: str | None = None,
) -> Origin:
    """Return the student's origin: synthetic, by this method, under the combined licenses.

    ``student`` is the reference of the initial student, if it is a checkpoint of its own.
    """
    licenses = [teacher.license for teacher in teachers]
    if student is not None:
        licenses.append(Checkpoint.open(resolve_checkpoint(student)).license)
    licensed = combine_origins(
        [
            *(record.origin for record in records),
            *(Origin("unknown", license=license) for license in licenses),
        ]
    )
    links = tuple(Link(method, teacher.fingerprint) for teacher in teachers)
    return Origin("synthetic", links, licensed.license)


def make_student_card(
    recipe: TrainingRecipe,
    teachers: Sequence[_Teacher],
    prepared: PreparedData,
    objective: str,
    policy: RolloutPolicy | None = None,
) -> dict[str, Any]:
    """Return the model card of a job's checkpoints: objective, data and license."""
    from_whom = "\n".join(_describe_teacher(teacher) for teacher in teachers)
    names = ", ".join(teacher.name for teacher in teachers)
    licenses, bases = [teacher.license for teacher in teachers], [one.name for one in teachers]
    start = ""
    if isinstance(recipe.student, str):  # its weights are those that were tuned
        student = Checkpoint.open(resolve_checkpoint(recipe.student))
        bases = [_shorten_reference(recipe.student)]
        licenses.append(student.license)
        start = (
            f"The initial student was {bases[0]} (fingerprint `{student.fingerprint[:16]}`, "
            f"{student.license or 'license unknown'}).\n\n"
        )
    return {
        "title": f"A student of {names}",
        "body": (
            f"Distilled by Stillroom with {objective} on "
            f"{_describe_records(recipe, prepared, policy)}, seed {recipe.seed}, from:\n\n"
            f"{from_whom}\n\n{start}"
        ),
        "license": combine_origins(Origin(license=license) for license in licenses).license,
        "base_models": bases,
        "relation": "finetune",
        "tags": ["distillation"],
    }


def warn_about_teachers(teachers: Sequence[_Teacher], job: Job) -> None:
    """Log what users should know about the teachers' licenses and weights before training."""
    for teacher in teachers:
        if teacher.about.get("weights"):
            job.say(
                f"{teacher.name}: {teacher.about['weights']}; the student is distilled from these"
            )
    licenses = [(teacher.name, teacher.license) for teacher in teachers]
    for line in (
        *find_license_warnings(licenses, "the teachers", "training on their outputs"),
        *describe_equal_models((teacher.reference, teacher.fingerprint) for teacher in teachers),
    ):
        job.warn(line)


def finish_card(
    card: Mapping[str, Any], closing: str, *, measured: bool, candidates: int
) -> dict[str, Any]:
    """Return the model card of the final student, with evaluation and candidates.

    Args:
        card: From ``make_student_card``.
        closing: Text on ``fidelity.html``.
        measured: Whether held-out records were measured.
        candidates: Number of kept checkpoints of the run.
    """
    candidates_text = (
        f" `candidates/` holds {count_noun(candidates, 'checkpoint')} of the second half "
        "of the run, its last step among them."
    )
    evaluation = closing if measured else "It was not measured on held-out records."
    return {**card, "body": card["body"] + evaluation + candidates_text * bool(candidates)}


def name_method(
    main: DistillationObjective | CrossTokenizerLoss, feature_losses: Sequence[FeatureLoss] = ()
) -> str:
    """Return the name of an objective in origins: of the first of its terms with a weight."""
    if main.kd_weight:
        is_aligned = isinstance(main, CrossTokenizerLoss)
        folder = "cross_tokenizer_losses" if is_aligned else "methods"
        return f"distill.{folder}.{main.method_name()}"
    return "distill.features" if feature_losses else "distill.cross_entropy"


def describe_objective(
    main: DistillationObjective | CrossTokenizerLoss, feature_losses: Sequence[FeatureLoss] = ()
) -> str:
    """Return a text that names the objective; terms of weight 0 are omitted."""
    terms = [
        (f"`{main.method_name()}`", main.kd_weight),
        ("cross-entropy with the text's own tokens", main.ce_weight),
        *(
            (f"`{feature_loss.method_name()}`", feature_loss.weight)
            for feature_loss in feature_losses
        ),
    ]
    nonzero = [(name, weight) for name, weight in terms if weight]
    if len(nonzero) == 1:
        return f"the objective {nonzero[0][0]}"
    listed = ", ".join(f"{name} (weight {weight:g})" for name, weight in nonzero)
    return f"the objectives {listed}" if nonzero else "no objective (all weights are 0)"


def _describe_records(
    recipe: TrainingRecipe, prepared: PreparedData, policy: RolloutPolicy | None
) -> str:
    """Return a text on the number of records reached, their prompts, and generated text."""
    count = reached = len(prepared.tokenized)
    if policy is None:
        reached = len(select_reached(recipe, prepared.tokenized))
    description = f"{count} records"
    if reached < count:
        description = f"{reached} of {description} (as many as its steps reach)"
    prompts = {extract_prompt(record) or (record.id,) for record in prepared.records}
    if len(prompts) < len(prepared.records):
        description += f" of {len(prompts)} prompts"
    if policy is not None and not policy.uses_records:
        return f"text alone that `{policy.method_name()}` wrote in training from {description}"
    if policy is not None:
        return f"{description}, and text that `{policy.method_name()}` wrote in training from them"
    return (
        f"{description} ({prepared.counts['tokens']} tokens)" if reached == count else description
    )


def _shorten_reference(reference: str) -> str:
    """Return the name of a model for a card: of a hub its name there, else its folder's."""
    if reference.startswith("hub:"):
        return reference.removeprefix("hub:").partition("@")[0]
    return Path(reference).name


def _describe_teacher(teacher: _Teacher) -> str:
    extra = "".join(f"; {teacher.about[key]}" for key in ("weights",) if teacher.about.get(key))
    license = teacher.license or "license unknown"
    return f"- {teacher.name} (fingerprint `{teacher.fingerprint[:16]}`, {license}{extra})"
