"""A student made of its teacher's layers, heads and channels, written as an ordinary checkpoint.

Depth is a matter of tensor names (``depth_layers``), width of what each dimension counts
(``width_axes``). What is kept is measured on records: layers by ``depth_scores``, channels and
heads by ``width_statistics``. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.distill.depth_layers import (
    check_share,
    count_layers,
    count_parameters,
    layer_names,
    refuse_missing,
    renumber,
    shorten_config,
    spread,
)
from stillroom.distill.depth_scores import (
    absence_costs,
    drop_one_by_one,
    layer_influence,
    rank_layers,
    turning_run,
)
from stillroom.distill.encode import Lesson
from stillroom.distill.prune_settings import PruneSettings
from stillroom.distill.width_choice import KeptWidth, choose_width
from stillroom.distill.width_shape import WidthPlan, plan_width
from stillroom.distill.width_slice import WidthCut
from stillroom.distill.width_statistics import gather_width_statistics, norm_shrinkage
from stillroom.errors import DataError
from stillroom.models.causal import resolve_config

if TYPE_CHECKING:
    from torch import nn

__all__ = ["StudentPlan", "initialize_student", "plan_student", "student_parameters"]


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """What a student keeps of its teacher.

    ``layers`` are the teacher's numbers, rising; ``width`` and ``cut`` are None where the width
    stays as it is; ``scores`` are those the layers were chosen by, if any were measured.
    """

    layers: tuple[int, ...]
    width: WidthPlan | None = None
    cut: WidthCut | None = None
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


def student_parameters(checkpoint: Checkpoint, settings: PruneSettings) -> int:
    """Return how many parameters the student will have, from names and shapes alone.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    if settings.is_narrower:
        return plan_width(checkpoint, settings).parameters
    kept = settings.keep or tuple(range(count_layers(checkpoint, settings)))
    count_layers(checkpoint, settings)
    return count_parameters(checkpoint, kept)


def plan_student(
    checkpoint: Checkpoint,
    settings: PruneSettings,
    load: Callable[[], nn.Module],
    lessons: Sequence[Lesson],
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
    width = plan_width(checkpoint, settings) if settings.is_narrower else None
    count = layer_names(checkpoint)[1]
    wanted = width.student.layers if width else count_layers(checkpoint, settings)
    layers, scores = _choose_layers(count, wanted, settings, load, lessons, on_pass)
    _refuse_nan("a layer's score", torch.tensor(scores))
    parameters = width.parameters if width else count_parameters(checkpoint, layers)
    check_share(parameters, checkpoint.parameters, settings)
    if width is None or not width.is_narrower:
        return StudentPlan(layers, width, None, scores)
    model = load()
    statistics = gather_width_statistics(model, lessons, layers=layers, on_lesson=on_pass)
    scored = [statistics.hidden, *statistics.ffn.values(), *statistics.attention.values()]
    _refuse_nan("a channel's score", torch.cat(scored))
    kept = choose_width(width.teacher, width.student, statistics, layers)
    cut = WidthCut(
        kept,
        width.student,
        str(checkpoint.config.get("model_type")),
        is_tied=bool(resolve_config(checkpoint.folder).get("tie_word_embeddings")),
        shrinkage=_shrinkage(model, lessons, kept) if settings.rescale_norms else {},
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
    with CheckpointWriter(folder, config=_config(checkpoint, plan), dtype=dtype) as writer:
        _write_tensors(checkpoint, plan, writer)
        writer.copy_tokenizer(checkpoint.folder)
    return folder


def _write_tensors(checkpoint: Checkpoint, plan: StudentPlan, writer: CheckpointWriter) -> None:
    """Add every tensor of the student to a writer, one in memory at a time."""
    names, _ = layer_names(checkpoint)
    places = {old: new for new, old in enumerate(plan.layers)}
    for name in checkpoint.names():
        layer = names.get(name)
        if layer is not None and layer not in places:
            continue
        tensor = checkpoint.tensor(name)
        if plan.cut is not None:
            tensor = plan.cut.cut(name, tensor, layer)
        writer.add(name if layer is None else renumber(name, places[layer]), tensor)


def _config(checkpoint: Checkpoint, plan: StudentPlan) -> dict[str, Any]:
    count = layer_names(checkpoint)[1]
    is_shorter = len(plan.layers) < count
    resolved = resolve_config(checkpoint.folder) if is_shorter else {}
    config = shorten_config(checkpoint.config, resolved, count, plan.layers)
    return plan.cut.cut_config(config) if plan.cut is not None else config


def _choose_layers(
    count: int,
    wanted: int,
    settings: PruneSettings,
    load: Callable[[], nn.Module],
    lessons: Sequence[Lesson],
    on_pass: Callable[[], None] | None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the layers that stay, and the scores that this was decided by."""
    if settings.keep is not None:
        refuse_missing(settings.keep, count)
        return settings.keep, ()
    if wanted == count:
        return tuple(range(count)), ()
    if settings.choose == "even":
        return spread(count, wanted), ()
    if settings.choose == "contiguous":
        run = turning_run(load(), lessons, count - wanted)
        return tuple(number for number in range(count) if number not in run), ()
    if settings.choose == "influence":
        scores = layer_influence(load(), lessons)
        return rank_layers(scores, wanted), tuple(scores)
    if settings.iterative:
        return drop_one_by_one(load(), lessons, settings.choose, wanted, on_layer=on_pass), ()
    scores = absence_costs(load(), lessons, settings.choose, on_layer=on_pass)
    return rank_layers(scores, wanted), tuple(scores)


def _refuse_nan(what: str, scores: Tensor) -> None:
    """Refuse scores that are no numbers: whatever order they gave would be chance."""
    if bool(scores.isnan().any()):
        raise DataError(
            f"{what} is not a number, so nothing can be chosen by it",
            code="distill.teacher-not-finite",
            where="teacher",
            expected="activations within the range of float32 on every calibration record",
            next="check the teacher's weights",
        )


def _shrinkage(model: nn.Module, lessons: Sequence[Lesson], kept: KeptWidth) -> dict[str, float]:
    if len(kept.hidden) == kept.teacher.hidden_size:
        return {}
    return norm_shrinkage(model, lessons, torch.tensor(kept.hidden))
