"""Student initialization: depth pruning (layer dropping) and width pruning of the teacher.

Depth is derived from tensor names and width from tensor axes (both in ``shapes``). Layers, channels
and heads are selected by scores on calibration records (``importance``).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.card import write_card
from stillroom.distill.data.preparation import tokenize_training_records
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.evaluation.metrics import Fidelity, measure_fidelity
from stillroom.distill.output import list_parents, make_student_origin, warn_about_teachers
from stillroom.distill.pruning.importance import (
    gather_width_statistics,
    measure_ablation_costs,
    measure_block_influence,
    measure_norm_shrinkage,
    rank_layers,
)
from stillroom.distill.pruning.shapes import (
    check_layers_exist,
    check_parameter_budget,
    count_layers,
    count_parameters,
    drop_config_layers,
    get_part,
    map_layers,
    renumber_layer,
)
from stillroom.distill.pruning.width import (
    StudentShapePlan,
    WidthSelection,
    WidthSlicer,
    plan_student_shape,
    select_width,
)
from stillroom.distill.settings import PruneSettings
from stillroom.distill.teachers.endpoint import TextOnlyTeacher
from stillroom.distill.teachers.ensemble import AnyTeacher, require_local
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.errors import DataError
from stillroom.evaluate import held_out_loss
from stillroom.jobs import Job, atomic_write
from stillroom.models import load_model_only, resolve_checkpoint
from stillroom.models.local.causal_lm import resolve_config
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, digest_json
from stillroom.train.data import RecordSplit, order_records, split_records
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from torch import nn

    from stillroom.distill.jobs.prune import PruneRecipe

__all__ = [
    "PruningReport",
    "StudentPlan",
    "count_parameters_by_part",
    "count_student_parameters",
    "initialize_student",
    "plan_student",
    "prepare_student",
    "prune_teacher",
]


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """Parts of the teacher that a student keeps.

    ``layers`` are the teacher's numbers, ascending; ``width`` and ``cut`` are None if the width is
    unchanged; ``scores`` are those of the layers, if measured.
    """

    layers: tuple[int, ...]
    width: StudentShapePlan | None = None
    cut: WidthSlicer | None = None
    scores: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: kept parts, by the teacher's numbers."""
        values: dict[str, Any] = {
            "layers": list(self.layers),
            # the cost of an unmeasured layer is infinite, which JSON cannot represent
            "layer_scores": [score if score < float("inf") else None for score in self.scores],
            "notes": list(self.notes),
        }
        if self.width is not None:
            values["teacher_shape"] = asdict(self.width.teacher)
            values["student_shape"] = asdict(self.width.student)
        if self.cut is not None:
            values["hidden"] = list(self.cut.kept.hidden)
            values["heads"] = [list(self.cut.kept.layers[layer].heads) for layer in self.layers]
            values["kv_heads"] = [
                list(self.cut.kept.layers[layer].kv_heads) for layer in self.layers
            ]
            values["ffn"] = [list(self.cut.kept.layers[layer].ffn) for layer in self.layers]
            values["norm_factors"] = dict(self.cut.shrinkage)
        return values


def count_student_parameters(checkpoint: Checkpoint, settings: PruneSettings) -> int:
    """Return the student's number of parameters, from names and shapes only.

    Raises:
        CheckpointError: If the teacher's architecture is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
    """
    if settings.is_narrower:
        return plan_student_shape(checkpoint, settings).parameters
    layers = range(count_layers(checkpoint, settings))
    return count_parameters(checkpoint, settings.keep or tuple(layers))


def plan_student(
    checkpoint: Checkpoint,
    settings: PruneSettings,
    load: Callable[[], nn.Module],
    records: Sequence[TokenizedRecord],
    *,
    on_pass: Callable[[], None] | None = None,
) -> StudentPlan:
    """Select the parts that a student keeps, with measurements if the settings require them.

    Args:
        checkpoint: Checkpoint of the teacher.
        settings: Sizes, and selection of layers.
        load: Returns the teacher in memory; called only for measurements.
        records: Calibration records.
        on_pass: Called after each measurement.

    Raises:
        CheckpointError: If the teacher's architecture is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
        DataError: If the teacher's activations are NaN.
    """
    width = plan_student_shape(checkpoint, settings) if settings.is_narrower else None
    count = map_layers(checkpoint)[1]
    layer_count = width.student.layers if width else count_layers(checkpoint, settings)
    layers, scores = _choose_layers(count, layer_count, settings, load, records, on_pass)
    _check_scores("a layer's score", torch.tensor(scores))
    parameters = width.parameters if width else count_parameters(checkpoint, layers)
    check_parameter_budget(parameters, checkpoint.parameters, settings)
    if width is None or not width.is_narrower:
        return StudentPlan(layers, width, None, scores)
    model = load()
    statistics = gather_width_statistics(model, records, layers=layers, on_record=on_pass)
    scored = [statistics.hidden, *statistics.ffn.values(), *statistics.attention.values()]
    _check_scores("a channel's score", torch.cat(scored))
    kept = select_width(width.teacher, width.student, statistics, layers)
    cut = WidthSlicer(
        kept,
        width.student,
        str(checkpoint.config.get("model_type")),
        is_tied=bool(resolve_config(checkpoint.folder).get("tie_word_embeddings")),
        shrinkage=_measure_shrinkage(model, records, kept) if settings.rescale_norms else {},
    )
    return StudentPlan(layers, width, cut, scores, tuple(width.notes))


def initialize_student(teacher: Path, folder: Path, plan: StudentPlan) -> Path:
    """Write the kept parts of a teacher as a checkpoint to ``folder``, and return it.

    Args:
        teacher: Folder or ``.gguf`` file.
        folder: Destination, written atomically.
        plan: Parts to keep.

    Raises:
        CheckpointError: If a tensor is unknown; nothing is written.
    """
    checkpoint = Checkpoint.open(teacher)
    with CheckpointWriter(folder, config=_make_config(checkpoint, plan)) as writer:
        writer.copy_tokenizer(checkpoint.folder)  # first: it may be refused
        # Add every tensor of the student to a writer, one in memory at a time.
        names, _ = map_layers(checkpoint)
        new_numbers = {old: new for new, old in enumerate(plan.layers)}
        for name in checkpoint.names():
            layer = names.get(name)
            if layer is not None and layer not in new_numbers:
                continue
            tensor = checkpoint.tensor(name)
            if plan.cut is not None:
                tensor = plan.cut.cut(name, tensor, layer)
            writer.add(name if layer is None else renumber_layer(name, new_numbers[layer]), tensor)
    return folder


def _make_config(checkpoint: Checkpoint, plan: StudentPlan) -> dict[str, Any]:
    count = map_layers(checkpoint)[1]
    is_shorter = len(plan.layers) < count
    resolved = resolve_config(checkpoint.folder) if is_shorter else {}
    config = drop_config_layers(checkpoint.config, resolved, count, plan.layers)
    return plan.cut.cut_config(config) if plan.cut is not None else config


def _choose_layers(
    count: int,
    layer_count: int,
    settings: PruneSettings,
    load: Callable[[], nn.Module],
    records: Sequence[TokenizedRecord],
    on_pass: Callable[[], None] | None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the kept layers, and the scores used for selection."""
    if settings.keep is not None:
        check_layers_exist(settings.keep, count)
        return settings.keep, ()
    if layer_count == count:
        return tuple(range(count)), ()
    if settings.choose == "influence":
        scores = measure_block_influence(load(), records)
    else:
        scores = measure_ablation_costs(load(), records, on_layer=on_pass)
    return rank_layers(scores, layer_count), tuple(scores)


def _check_scores(quantity: str, scores: Tensor) -> None:
    """Reject NaN scores, which would give an arbitrary order."""
    if bool(scores.isnan().any()):
        raise DataError(
            f"{quantity} is NaN, so nothing can be selected by it",
            code="distill.teacher-not-finite",
            where="teacher",
            expected="activations within the range of float32 on every calibration record",
            next="check the teacher's weights",
        )


def _measure_shrinkage(
    model: nn.Module, records: Sequence[TokenizedRecord], kept: WidthSelection
) -> dict[str, float]:
    if len(kept.hidden) == kept.teacher.hidden_size:
        return {}
    return measure_norm_shrinkage(model, records, torch.tensor(kept.hidden))


_PRUNING_FILE = "pruning.json"


def prepare_student(
    student: PruneSettings | str,
    job: Job,
    teacher: AnyTeacher | TextOnlyTeacher,
    records: Sequence[TokenizedRecord],
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the initial student, and its details for artifact.json.

    A pruned student is written to the job's scratch folder, and its kept parts to
    ``output/pruning.json``; a resumed job reuses both. The student may also be the teacher's
    checkpoint itself.

    Raises:
        CheckpointError: If a checkpoint cannot be read, or its architecture is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
    """
    if not isinstance(student, PruneSettings):
        return Checkpoint.open(resolve_checkpoint(student, say=job.say)).folder, {"layers_kept": []}
    folder = job.scratch / "student"
    kept = _prune_once(student, job, require_local(teacher), records, folder)
    details: dict[str, Any] = {"layers_kept": kept["layers"]}
    details |= {key: kept[key] for key in ("teacher_shape", "student_shape") if key in kept}
    return folder, details


def _prune_once(
    settings: PruneSettings,
    job: Job,
    teacher: LocalTeacher,
    records: Sequence[TokenizedRecord],
    folder: Path,
) -> dict[str, Any]:
    """Write the student to ``folder`` unless that is done, and return its kept parts.

    Weights keep the teacher's storage type. The kept parts are also written to
    ``output/pruning.json``.

    Raises:
        CheckpointError: If the teacher's architecture is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
    """
    journal = job.journal("student")
    if "kept" not in journal or not (folder / "config.json").is_file():
        with job.phase("prune", unit="passes") as progress:
            plan = plan_student(
                teacher.checkpoint,
                settings,
                lambda: teacher.model,
                records[:: max(1, len(records) // settings.calibration_records)][
                    : settings.calibration_records
                ],
                on_pass=progress.advance,
            )
            initialize_student(teacher.checkpoint.folder, folder, plan)
        journal.put("kept", plan.to_json())
        _report_plan(job, plan, Checkpoint.open(folder), teacher.checkpoint)
    kept: dict[str, Any] = journal["kept"]
    with atomic_write(job.output / _PRUNING_FILE) as file:
        file.write(json.dumps(kept) + "\n")
    return kept


def _report_plan(job: Job, plan: StudentPlan, student: Checkpoint, teacher: Checkpoint) -> None:
    share = student.parameters / teacher.parameters
    job.say(f"the student keeps layers {', '.join(map(str, plan.layers))}")
    if plan.cut is not None and plan.width is not None:
        before = asdict(plan.width.teacher)
        sizes = ", ".join(
            f"{name} {before[name]} -> {size}"
            for name, size in asdict(plan.width.student).items()
            if size != before[name]
        )
        job.say(f"its sizes: {sizes}")
    for note in plan.notes:
        job.say(note)
    job.say(f"it has {student.parameters:,} parameters, {share:.1%} of the teacher's")


_LIST_FIELDS = frozenset({"hidden", "heads", "kv_heads", "ffn", "norm_factors"})


@dataclass(frozen=True)
class PruningReport:
    """Kept parts of a pruned teacher, and metrics of the student; the content of pruning.json.

    Losses, ``kl`` and ``agreement`` are means over the assistant's tokens of the calibration
    records, which were also used for selection: an optimistic estimate.
    """

    values: dict[str, Any]

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
    train = order_records(split.train)[: recipe.student.calibration_records]
    split = RecordSplit(train, [], split.passed_over)
    with limit_threads(recipe.threads):
        teacher = LocalTeacher.find(recipe.teacher, job)
        warn_about_teachers([teacher], job)
        records, _ = tokenize_training_records(
            split, teacher.tokenizer, job, max_tokens=recipe.max_tokens, include_prompt=True
        )
        kept = _prune_once(recipe.student, job, teacher, records, job.output)
        job.check_cancelled()
        report = _measure(recipe, job, teacher, split, kept)
    with atomic_write(job.output / _PRUNING_FILE) as file:
        file.write(json.dumps(report.values) + "\n")
    for line in str(report).splitlines():
        job.say(line)
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
            counts[part] += math.prod(checkpoint.shape(name))
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
    student = load_model_only(job.output, dtype="float32")
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
