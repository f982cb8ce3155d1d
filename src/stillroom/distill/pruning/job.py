"""Pruning job: writes an untrained student, and reports the loss by pruning."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.card import write_card
from stillroom.distill.data.preparation import tokenize_training_records
from stillroom.distill.evaluation.metrics import Fidelity, measure_fidelity
from stillroom.distill.output import list_parents, make_student_origin, warn_about_teachers
from stillroom.distill.pruning.shapes import get_part
from stillroom.distill.pruning.student import PRUNING_FILE, prune_once
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.evaluate import held_out_loss
from stillroom.jobs import Job, atomic_write
from stillroom.models import load_causal_lm
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, digest_json
from stillroom.train.data import RecordSplit, split_records
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.prune import PruneRecipe

__all__ = ["PruningReport", "count_parameters_by_part", "prune_teacher"]

_LIST_FIELDS = frozenset({"hidden", "heads", "kv_heads", "ffn", "norm_factors"})


@dataclass(frozen=True)
class PruningReport:
    """Kept parts of a pruned teacher, and metrics of the student; the content of pruning.json.

    Losses, ``kl`` and ``agreement`` are means over the assistant's tokens of the calibration
    records, which were also used for selection: an optimistic estimate.
    """

    values: dict[str, Any]

    @classmethod
    def read(cls, output: Path) -> PruningReport:
        """Read the report of a finished job's output folder."""
        return cls(json.loads((output / PRUNING_FILE).read_text(encoding="utf-8")))

    def summarize(self) -> dict[str, Any]:
        """Return the values without the lists of channels and heads."""
        return {key: value for key, value in self.values.items() if key not in _LIST_FIELDS}

    def __str__(self) -> str:
        """Return the report as a table."""
        values, calibration = self.values, self.values["calibration"]
        lines = [f"{'':<20} {'teacher':>14} {'student':>14} {'share':>7}"]
        before, after = values.get("teacher_shape"), values.get("student_shape")
        if before and after:
            lines += [_format_row(name, before[name], after[name]) for name in before]
        else:
            lines.append(f"{'layers':<20} {'':>14} {len(values['layers']):>14}")
        teacher, student = values["teacher_parameters"], values["student_parameters"]
        lines += [
            _format_row(
                "all parameters" if part == "all" else f"{part} params",
                teacher[part],
                student.get(part, 0),
            )
            for part in teacher
        ]
        lines.append(f"layers kept: {', '.join(map(str, values['layers']))}")
        lines.append(
            f"before any training, on {calibration['records']} calibration records "
            f"({calibration['tokens']} tokens): loss {calibration['teacher_loss']:.3f} -> "
            f"{calibration['student_loss']:.3f}, KL to the teacher {calibration['kl']:.3f} "
            f"nats/token, top-1 agreement {calibration['agreement']:.1%}"
        )
        return "\n".join(lines)


def prune_teacher(recipe: PruneRecipe, job: Job) -> Artifact:
    """Write the student described by a recipe's ``student``, without training it.

    Raises:
        CheckpointError: If the teacher cannot be read or its architecture is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
        DataError: If no record can be read.
    """
    split = split_records(resolve_local(recipe.records))
    train = split.train[: recipe.student.calibration_records]
    split = RecordSplit(train, [], split.passed_over)
    with limit_threads(recipe.threads):
        teacher = LocalTeacher.find(recipe.teacher, job)
        warn_about_teachers([teacher], job)
        records, _ = tokenize_training_records(
            split, teacher.tokenizer, job, max_tokens=recipe.max_tokens, include_prompt=True
        )
        kept = prune_once(recipe.student, job, teacher, records, job.output)
        job.check_cancelled()
        report = _measure(recipe, job, teacher, split, kept)
    with atomic_write(job.output / PRUNING_FILE) as file:
        file.write(json.dumps(report.values) + "\n")
    write_card(job.output, **_make_card(teacher, report))
    student = Checkpoint.open(job.output)
    job.commit("student", digest_json(recipe.student.model_dump(mode="json")), student.fingerprint)
    return job.finish(
        "checkpoint",
        parents=list_parents(recipe.records, job, [teacher]),
        origin=make_student_origin("distill.prune", [teacher], split.train).to_json(),
        details={
            "fingerprint": student.fingerprint,
            "parameters": student.parameters,
            **report.summarize(),
        },
    )


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


def _measure(
    recipe: PruneRecipe,
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
    before = count_parameters_by_part(teacher.checkpoint)
    after = count_parameters_by_part(Checkpoint.open(job.output))
    return PruningReport(
        {
            **kept,
            "teacher_parameters": {**before, "all": sum(before.values())},
            "student_parameters": {**after, "all": sum(after.values())},
            "calibration": {
                "records": len(records),
                "tokens": tokens,
                "teacher_loss": sum(nats for nats, _ in losses) / max(tokens, 1),
                "student_loss": fidelity.mean("loss"),
                "kl": fidelity.mean("kl"),
                "agreement": fidelity.mean("agreement"),
            },
        }
    )


def _make_card(teacher: LocalTeacher, report: PruningReport) -> dict[str, Any]:
    values = report.values
    share = values["student_parameters"]["all"] / values["teacher_parameters"]["all"]
    return {
        "title": f"{teacher.name}, pruned",
        "body": (
            f"Made by Stillroom from {teacher.name} (fingerprint "
            f"`{teacher.checkpoint.fingerprint[:16]}`): {share:.1%} of its parameters, layers "
            f"{', '.join(map(str, values['layers']))}. It was not trained since, and will "
            "speak poorly until it is. `pruning.json` says what was kept."
        ),
        "license": teacher.checkpoint.license,
        "base_models": [teacher.name],
        "relation": "finetune",
        "tags": ["pruning"],
    }


def _format_row(name: str, before: int, after: int) -> str:
    return f"{name:<20} {before:>14,} {after:>14,} {after / before:>7.1%}"
