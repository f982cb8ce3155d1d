"""Pruning job: writes an untrained student, and reports the loss by pruning."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.card import write_card
from stillroom.distill.data.preparation import tokenize_training_records
from stillroom.distill.evaluation.metrics import Fidelity, measure_fidelity
from stillroom.distill.output import list_parents, make_student_origin, warn_about_teachers
from stillroom.distill.pruning.shapes import get_part
from stillroom.distill.pruning.student import PRUNING_FILE, count_student_parameters, prune_once
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.settings import PruneSettings, name_teacher
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.errors import RecipeError
from stillroom.evaluate import held_out_loss
from stillroom.jobs import Job, Reporter, atomic_write
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact
from stillroom.recipes import dump_recipe
from stillroom.train.data import RecordSplit, split_records
from stillroom.train.precision import limit_threads

__all__ = ["PruningReport", "count_parameters_by_part", "prune_teacher"]

_LIST_FIELDS = frozenset({"hidden", "heads", "kv_heads", "ffn", "norm_factors"})
_RECIPE_NOTE = "# stillroom distill prune: teacher, records, student and max_tokens were used\n"


@dataclass(frozen=True, slots=True)
class PruningReport:
    """Kept parts of a pruned teacher, and metrics of the student.

    ``loss`` (teacher, student), ``kl`` and ``agreement`` are means over the assistant's tokens of
    the calibration records, which were also used for selection: an optimistic estimate.
    """

    kept: dict[str, Any]
    teacher_parts: dict[str, int]
    student_parts: dict[str, int]
    loss: tuple[float, float]
    kl: float
    agreement: float
    records: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **self.kept,
            "teacher_parameters": {**self.teacher_parts, "all": sum(self.teacher_parts.values())},
            "student_parameters": {**self.student_parts, "all": sum(self.student_parts.values())},
            "calibration": {
                "records": self.records,
                "tokens": self.tokens,
                "teacher_loss": self.loss[0],
                "student_loss": self.loss[1],
                "kl": self.kl,
                "agreement": self.agreement,
            },
        }

    def summarize(self) -> dict[str, Any]:
        """Return ``to_json`` without the lists of channels and heads."""
        return {key: value for key, value in self.to_json().items() if key not in _LIST_FIELDS}

    def __str__(self) -> str:
        """Return the report as a table."""
        lines = [f"{'':<20} {'teacher':>14} {'student':>14} {'share':>7}"]
        before, after = self.kept.get("teacher_shape"), self.kept.get("student_shape")
        if before and after:
            lines += [_format_row(name, before[name], after[name]) for name in before]
        else:
            lines.append(f"{'layers':<20} {'':>14} {len(self.kept['layers']):>14}")
        lines += [
            _format_row(f"{part} params", self.teacher_parts[part], self.student_parts.get(part, 0))
            for part in self.teacher_parts
        ]
        total = sum(self.teacher_parts.values()), sum(self.student_parts.values())
        lines.append(_format_row("all parameters", *total))
        lines.append(f"layers kept: {', '.join(map(str, self.kept['layers']))}")
        lines.append(
            f"before any training, on {self.records} calibration records ({self.tokens} tokens): "
            f"loss {self.loss[0]:.3f} -> {self.loss[1]:.3f}, KL to the teacher {self.kl:.3f} "
            f"nats/token, top-1 agreement {self.agreement:.1%}"
        )
        return "\n".join(lines)


def prune_teacher(
    recipe: DistillRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, PruningReport]:
    """Write the student described by a recipe's ``student``, without training it.

    Args:
        recipe: Uses teacher, records, student, max_tokens and include_prompt.
        out: Folder of the artifact; the checkpoint is in ``output``.
        resume: Continue an interrupted job.
        overwrite: Replace an existing artifact at ``out``.
        reporter: Progress reporter; None reports nothing.

    Raises:
        CheckpointError: If the teacher cannot be read or its architecture is not supported.
        RecipeError: If the student is a checkpoint, or the teacher cannot be pruned to it.
        DataError: If no record can be read.
    """
    settings = recipe.student
    if not isinstance(settings, PruneSettings):
        raise RecipeError(
            "the student is a checkpoint, not pruning settings",
            code="distill.prune-shape",
            where="student",
            expected="settings to derive the student from the teacher",
            next="set student: {max_parameters: 0.6}, or copy the checkpoint",
        )
    # reject impossible settings before a job folder exists
    reference = name_teacher(recipe.teacher)
    count_student_parameters(Checkpoint.open(resolve_checkpoint(reference)), settings)
    split = split_records(resolve_local(recipe.records))
    calibration = RecordSplit(split.train[: settings.calibration_records], [], split.passed_over)
    job = Job.start(
        out,
        _RECIPE_NOTE + dump_recipe(recipe),
        seed=recipe.seed,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
    try:
        with job.interruptible(), limit_threads(recipe.train.threads):
            return _prune(recipe, settings, job, calibration)
    finally:
        job.close()


def count_parameters_by_part(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the parameters of each part of a checkpoint; a tied head is not counted again."""
    counts: Counter[str] = Counter()
    for name in checkpoint.names():
        part = get_part(name)
        if not (part == "head" and checkpoint.is_tied):
            size = 1
            for length in checkpoint.shape(name):
                size *= length
            counts[part] += size
    return dict(sorted(counts.items()))


def _prune(
    recipe: DistillRecipe, settings: PruneSettings, job: Job, split: RecordSplit
) -> tuple[Artifact, PruningReport]:
    teacher = LocalTeacher.find(name_teacher(recipe.teacher), job)
    warn_about_teachers([teacher], job)
    records, _ = tokenize_training_records(recipe, split, teacher.tokenizer, job)
    kept = prune_once(settings, job, teacher, records, job.output)
    job.check_cancelled()
    report = _measure(recipe, job, teacher, split, kept)
    with atomic_write(job.output / PRUNING_FILE) as file:
        file.write(json.dumps(report.to_json()) + "\n")
    write_card(job.output, **_make_card(teacher, report))
    student = Checkpoint.open(job.output)
    artifact = job.finish(
        "checkpoint",
        parents=list_parents(recipe, job, [teacher]),
        origin=make_student_origin("distill.prune", [teacher], split.train).to_json(),
        details={
            "fingerprint": student.fingerprint,
            "parameters": student.parameters,
            **report.summarize(),
        },
    )
    return artifact, report


def _measure(
    recipe: DistillRecipe,
    job: Job,
    teacher: LocalTeacher,
    split: RecordSplit,
    kept: dict[str, Any],
) -> PruningReport:
    """Compare the untrained student with the teacher on the calibration records."""
    records = split.train
    student, _ = load_causal_lm(job.output, dtype="float32")
    with job.phase("measure", len(records), "records") as progress:
        fidelity: Fidelity = measure_fidelity(
            student, teacher.model, teacher.tokenizer, records, max_tokens=recipe.max_tokens
        )
        losses = held_out_loss(
            teacher.model, teacher.tokenizer, records, max_tokens=recipe.max_tokens
        )
        progress.advance(len(records))
    tokens = sum(count for _, count in losses)
    return PruningReport(
        kept,
        count_parameters_by_part(teacher.checkpoint),
        count_parameters_by_part(Checkpoint.open(job.output)),
        (sum(nats for nats, _ in losses) / max(tokens, 1), fidelity.mean("loss")),
        fidelity.mean("kl"),
        fidelity.mean("agreement"),
        len(records),
        tokens,
    )


def _make_card(teacher: LocalTeacher, report: PruningReport) -> dict[str, Any]:
    share = sum(report.student_parts.values()) / sum(report.teacher_parts.values())
    return {
        "title": f"{teacher.name}, pruned",
        "body": (
            f"Made by Stillroom from {teacher.name} (fingerprint "
            f"`{teacher.checkpoint.fingerprint[:16]}`): {share:.1%} of its parameters, layers "
            f"{', '.join(map(str, report.kept['layers']))}. It was not trained since, and will "
            "speak poorly until it is. `pruning.json` says what was kept."
        ),
        "license": teacher.checkpoint.license,
        "base_models": [teacher.name],
        "relation": "finetune",
        "tags": ["pruning"],
    }


def _format_row(name: str, before: int, after: int) -> str:
    return f"{name:<20} {before:>14,} {after:>14,} {after / before:>7.1%}"
