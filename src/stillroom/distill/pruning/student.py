"""Student initialized from its teacher's layers, heads and channels.

Depth is a matter of tensor names (``depth_layers``), width of what each dimension counts
(``width_axes``). What is kept is measured on records: layers by ``depth_scores``, channels and
heads by ``width_statistics``. Knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.pruning.importance import (
    drop_iteratively,
    find_redundant_block,
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
    map_layers,
    renumber_layer,
    space_evenly,
)
from stillroom.distill.pruning.width import (
    StudentShapePlan,
    WidthSelection,
    WidthSlicer,
    plan_student_shape,
    select_width,
)
from stillroom.distill.settings import PruneSettings
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.errors import DataError
from stillroom.jobs import Job, atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import resolve_config

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "PRUNING_FILE",
    "StudentPlan",
    "count_student_parameters",
    "initialize_student",
    "plan_student",
    "prepare_student",
    "prune_once",
]


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """What a student keeps of its teacher.

    ``layers`` are the teacher's numbers, rising; ``width`` and ``cut`` are None where the width
    stays as it is; ``scores`` are those the layers were chosen by, if any were measured.
    """

    layers: tuple[int, ...]
    width: StudentShapePlan | None = None
    cut: WidthSlicer | None = None
    scores: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: what is kept, by the teacher's numbers."""
        found: dict[str, Any] = {
            "layers": list(self.layers),
            # a cost that was not measured is infinite, which JSON cannot say
            "layer_scores": [score if score < float("inf") else None for score in self.scores],
            "notes": list(self.notes),
        }
        if self.width is not None:
            found["teacher_shape"] = self.width.teacher.to_json()
            found["student_shape"] = self.width.student.to_json()
        if self.cut is not None:
            found["hidden"] = list(self.cut.kept.hidden)
            found["heads"] = [list(self.cut.kept.layers[at].heads) for at in self.layers]
            found["kv_heads"] = [list(self.cut.kept.layers[at].kv_heads) for at in self.layers]
            found["ffn"] = [list(self.cut.kept.layers[at].ffn) for at in self.layers]
            found["norm_factors"] = dict(self.cut.shrinkage)
        return found


def count_student_parameters(checkpoint: Checkpoint, settings: PruneSettings) -> int:
    """Return how many parameters the student will have, from names and shapes alone.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    if settings.is_narrower:
        return plan_student_shape(checkpoint, settings).parameters
    kept = settings.keep or tuple(range(count_layers(checkpoint, settings)))
    count_layers(checkpoint, settings)
    return count_parameters(checkpoint, kept)


def plan_student(
    checkpoint: Checkpoint,
    settings: PruneSettings,
    load: Callable[[], nn.Module],
    lessons: Sequence[TokenizedRecord],
    *,
    on_pass: Callable[[], None] | None = None,
) -> StudentPlan:
    """Decide what a student keeps, measuring the teacher where the settings ask for it.

    Args:
        checkpoint: The teacher.
        settings: Sizes, and how layers are chosen.
        load: Gives the teacher in memory; called only if something is measured.
        lessons: The calibration records.
        on_pass: Called after each step of measuring.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
        DataError: If the teacher's activations are not numbers.
    """
    width = plan_student_shape(checkpoint, settings) if settings.is_narrower else None
    count = map_layers(checkpoint)[1]
    wanted = width.student.layers if width else count_layers(checkpoint, settings)
    layers, scores = _choose_layers(count, wanted, settings, load, lessons, on_pass)
    _check_scores("a layer's score", torch.tensor(scores))
    parameters = width.parameters if width else count_parameters(checkpoint, layers)
    check_parameter_budget(parameters, checkpoint.parameters, settings)
    if width is None or not width.is_narrower:
        return StudentPlan(layers, width, None, scores)
    model = load()
    statistics = gather_width_statistics(model, lessons, layers=layers, on_lesson=on_pass)
    scored = [statistics.hidden, *statistics.ffn.values(), *statistics.attention.values()]
    _check_scores("a channel's score", torch.cat(scored))
    kept = select_width(width.teacher, width.student, statistics, layers)
    cut = WidthSlicer(
        kept,
        width.student,
        str(checkpoint.config.get("model_type")),
        is_tied=bool(resolve_config(checkpoint.folder).get("tie_word_embeddings")),
        shrinkage=_measure_shrinkage(model, lessons, kept) if settings.rescale_norms else {},
    )
    return StudentPlan(layers, width, cut, scores, tuple(width.notes))


def initialize_student(
    teacher: Path, folder: Path, plan: StudentPlan, *, dtype: torch.dtype | None = None
) -> Path:
    """Write what a student keeps of its teacher to ``folder``, and return it.

    Args:
        teacher: Folder or ``.gguf`` file.
        folder: Where the student will stand; appears whole or not at all.
        plan: What it keeps.
        dtype: Storage type of the weights; default each as the teacher's.

    Raises:
        CheckpointError: If a tensor is not understood; nothing is written then.
    """
    checkpoint = Checkpoint.open(teacher)
    with CheckpointWriter(folder, config=_make_config(checkpoint, plan), dtype=dtype) as writer:
        _write_tensors(checkpoint, plan, writer)
        writer.copy_tokenizer(checkpoint.folder)
    return folder


def _write_tensors(checkpoint: Checkpoint, plan: StudentPlan, writer: CheckpointWriter) -> None:
    """Add every tensor of the student to a writer, one in memory at a time."""
    names, _ = map_layers(checkpoint)
    places = {old: new for new, old in enumerate(plan.layers)}
    for name in checkpoint.names():
        layer = names.get(name)
        if layer is not None and layer not in places:
            continue
        tensor = checkpoint.tensor(name)
        if plan.cut is not None:
            tensor = plan.cut.cut(name, tensor, layer)
        writer.add(name if layer is None else renumber_layer(name, places[layer]), tensor)


def _make_config(checkpoint: Checkpoint, plan: StudentPlan) -> dict[str, Any]:
    count = map_layers(checkpoint)[1]
    is_shorter = len(plan.layers) < count
    resolved = resolve_config(checkpoint.folder) if is_shorter else {}
    config = drop_config_layers(checkpoint.config, resolved, count, plan.layers)
    return plan.cut.cut_config(config) if plan.cut is not None else config


def _choose_layers(
    count: int,
    wanted: int,
    settings: PruneSettings,
    load: Callable[[], nn.Module],
    lessons: Sequence[TokenizedRecord],
    on_pass: Callable[[], None] | None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the layers that stay, and the scores that this was decided by."""
    if settings.keep is not None:
        check_layers_exist(settings.keep, count)
        return settings.keep, ()
    if wanted == count:
        return tuple(range(count)), ()
    if settings.choose == "even":
        return space_evenly(count, wanted), ()
    if settings.choose == "contiguous":
        run = find_redundant_block(load(), lessons, count - wanted)
        return tuple(number for number in range(count) if number not in run), ()
    if settings.choose == "influence":
        scores = measure_block_influence(load(), lessons)
        return rank_layers(scores, wanted), tuple(scores)
    if settings.iterative:
        return drop_iteratively(load(), lessons, settings.choose, wanted, on_layer=on_pass), ()
    scores = measure_ablation_costs(load(), lessons, settings.choose, on_layer=on_pass)
    return rank_layers(scores, wanted), tuple(scores)


def _check_scores(what: str, scores: Tensor) -> None:
    """Refuse scores that are no numbers: whatever order they gave would be chance."""
    if bool(scores.isnan().any()):
        raise DataError(
            f"{what} is not a number, so nothing can be chosen by it",
            code="distill.teacher-not-finite",
            where="teacher",
            expected="activations within the range of float32 on every calibration record",
            next="check the teacher's weights",
        )


def _measure_shrinkage(
    model: nn.Module, lessons: Sequence[TokenizedRecord], kept: WidthSelection
) -> dict[str, float]:
    if len(kept.hidden) == kept.teacher.hidden_size:
        return {}
    return measure_norm_shrinkage(model, lessons, torch.tensor(kept.hidden))


PRUNING_FILE = "pruning.json"


def prepare_student(
    student: PruneSettings | str,
    job: Job,
    teacher: LocalTeacher,
    lessons: Sequence[TokenizedRecord],
) -> tuple[Path, dict[str, Any]]:
    """Return the folder that the student starts from, and what artifact.json says of it.

    A student made of the teacher is written to the job's scratch folder, and what it keeps to
    ``output/pruning.json``; a resumed job finds both. The teacher itself may be given: then the
    student starts as its equal.

    Raises:
        CheckpointError: If a checkpoint cannot be read, or the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    if not isinstance(student, PruneSettings):
        return Checkpoint.open(resolve_checkpoint(student, say=job.say)).folder, {"layers_kept": []}
    folder = job.scratch / "student"
    kept = prune_once(student, job, teacher, lessons, folder)
    said: dict[str, Any] = {"layers_kept": kept["layers"]}
    said |= {key: kept[key] for key in ("teacher_shape", "student_shape") if key in kept}
    return folder, said


def prune_once(
    settings: PruneSettings,
    job: Job,
    teacher: LocalTeacher,
    lessons: Sequence[TokenizedRecord],
    folder: Path,
) -> dict[str, Any]:
    """Write the student to ``folder`` unless a killed run has, and return what it keeps.

    The weights are stored as the teacher's are. What is kept also stands in
    ``output/pruning.json``.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    journal = job.journal("student")
    if "kept" not in journal or not (folder / "config.json").is_file():
        with job.phase("prune", unit="passes") as progress:
            plan = plan_student(
                teacher.checkpoint,
                settings,
                lambda: teacher.model,
                lessons[: settings.calibration_records],
                on_pass=progress.advance,
            )
            initialize_student(teacher.checkpoint.folder, folder, plan)
        journal.put("kept", plan.to_json())
        _report_plan(job, plan, Checkpoint.open(folder), teacher.checkpoint)
    kept: dict[str, Any] = journal["kept"]
    with atomic_write(job.output / PRUNING_FILE) as file:
        file.write(json.dumps(kept) + "\n")
    return kept


def _report_plan(job: Job, plan: StudentPlan, student: Checkpoint, teacher: Checkpoint) -> None:
    share = student.parameters / teacher.parameters
    job.say(f"the student keeps layers {', '.join(map(str, plan.layers))}")
    if plan.cut is not None and plan.width is not None:
        before = plan.width.teacher.to_json()
        sizes = ", ".join(
            f"{name} {before[name]} -> {size}"
            for name, size in plan.width.student.to_json().items()
            if size != before[name]
        )
        job.say(f"its sizes: {sizes}")
    for note in plan.notes:
        job.say(note)
    job.say(f"it has {student.parameters:,} parameters, {share:.1%} of the teacher's")
