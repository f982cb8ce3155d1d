"""What a distillation needs, from file sizes and shapes, before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stillroom.distill.cache_header import CacheHeader, row_bytes
from stillroom.distill.prune_settings import PruneSettings
from stillroom.distill.recipe import DistillRecipe, TargetSettings
from stillroom.distill.teacher_settings import teacher_reference
from stillroom.jobs import Estimate
from stillroom.provenance import find_output
from stillroom.records import find_record_file

__all__ = ["bytes_per_position", "count_parameters", "estimate"]

_DEFAULT_PARAMETERS = 135_000_000
_DEFAULT_VOCABULARY = 49_152
_ADDRESSES = ("http://", "https://")
_DEFAULT_LAYERS = 30
_GGUF_BYTES = 0.65  # of one parameter in a four-bit file
_TOKEN_BYTES = 12  # of one token in a file of records, JSON around it included
_FLOPS_PER_CORE = 6e10  # of matrix products, as measured with bfloat16 on two cores
_WRITING = 8  # a token written alone costs as much as so many that are read together
_OVERHEAD = 600_000_000
_OWN_BYTES = (4, 3)  # of a position whose own token alone is kept, and of a token beside it
_DISK_KNOBS = {
    "top_k": "lower candidates or targets.k",
    "sampled": "lower candidates or targets.samples",
    "dense": "use targets.mode: top_k or sampled, which keep a hundredth of it",
    "live": "lower candidates",
}


def estimate(recipe: DistillRecipe) -> Estimate:
    """Return memory, disk and time of the job; a teacher that is not here counts as 135M."""
    named = teacher_reference(recipe.teacher)
    teacher, student = count_parameters(recipe)
    _, vocabulary, basis = _size_of(named)
    if named.startswith(_ADDRESSES):  # it takes no memory and no time of this machine
        teacher, vocabulary, basis = 0, _DEFAULT_VOCABULARY, f"the teacher stands behind {named}"
    records, tokens = _count_tokens(recipe)
    measured = _count_measured(recipe, tokens / max(records, 1))
    steps = recipe.train.count_steps(records)
    read = tokens * steps * recipe.train.batch_size / max(records, 1)
    targets = recipe.targets
    told = bytes_per_position(targets, vocabulary) if recipe.crossing is None else _OWN_BYTES
    cache = tokens * sum(told)
    held = 16 * student + 4 * teacher + 8 * vocabulary * 1024
    runs = tokens + measured + (read if targets.mode == "live" else 0)
    work = 6 * student * read + 2 * teacher * runs
    has_control = recipe.fidelity.control and recipe.fidelity.records > 0
    control = 6 * student * read if has_control else 0
    speed = _FLOPS_PER_CORE * (os.cpu_count() or 1)
    out = 4 if recipe.out.dtype == "float32" else 2
    kept = out + 12 if has_control else 0  # its checkpoint, and its state for a resume
    return Estimate(
        memory_bytes=held + 40_000 * recipe.train.micro_tokens + _OVERHEAD,
        disk_bytes=round(student * (out * (1 + recipe.candidates) + 4 + 24 + kept) + cache),
        seconds=(work + control + _fidelity_work(recipe, teacher, student, tokens / records))
        / speed
        + 10,
        memory_knob="lower student.max_parameters or train.micro_tokens, or set train.lora",
        disk_knob=_DISK_KNOBS[targets.mode],
        basis=f"{basis}; {records} records, about {tokens} tokens, {steps} steps; "
        + (
            f"the control without a teacher takes {control / speed / 60:.1f} min of it "
            "(fidelity.control: false leaves it out)"
            if has_control
            else "no control"
        ),
    )


def count_parameters(recipe: DistillRecipe) -> tuple[int, int]:
    """Return the parameters of teacher and student, by names, shapes and sizes of their files.

    Raises:
        CheckpointError: If a teacher to be pruned is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    named = teacher_reference(recipe.teacher)
    teacher = _size_of(named)[0]
    if isinstance(recipe.student, PruneSettings):
        return teacher, _size_of_pruned(named, teacher, recipe.student)
    return teacher, _size_of(recipe.student)[0]


def _size_of_pruned(reference: str, teacher: int, settings: PruneSettings) -> int:
    """Return the student's parameters: exactly, from the teacher's names and shapes, if it is here.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    path = Path(reference)
    if reference.startswith("hub:") or not path.is_dir():
        return round(teacher * settings.max_parameters)
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.initialize import student_parameters

    return student_parameters(Checkpoint.open(path), settings)


def _count_measured(recipe: DistillRecipe, tokens: float) -> float:
    """Return the tokens that the teacher reads while it is pruned, given those of a record."""
    if not isinstance(recipe.student, PruneSettings):
        return 0.0
    named = teacher_reference(recipe.teacher)
    layers, path = _DEFAULT_LAYERS, Path(named)
    if not named.startswith("hub:") and path.is_dir():
        from stillroom.checkpoints import Checkpoint
        from stillroom.distill.depth_layers import layer_names

        layers = layer_names(Checkpoint.open(path))[1]
    return recipe.student.count_passes(layers) * recipe.student.calibration_records * tokens


def _fidelity_work(
    recipe: DistillRecipe, teacher: int, student: int, tokens_a_record: float
) -> float:
    """Return the work of measuring: each side reads the records, and some write answers."""
    settings = recipe.fidelity
    students = 3 if settings.control else 2
    read = settings.records * tokens_a_record * 2 * (teacher + students * student)
    answered = min(settings.answers, settings.records)
    written = 2 * answered * settings.max_new_tokens * 2 * (teacher + (students - 1) * student)
    return read + _WRITING * written


def bytes_per_position(targets: TargetSettings, vocabulary: int) -> tuple[int, int]:
    """Return bytes that a cache keeps of one position, and of one token of a record beside it."""
    if targets.mode == "live":
        return 0, 0
    asked = targets.samples if targets.mode == "sampled" else targets.k
    header = CacheHeader(
        teacher="",
        tokenizer="",
        template="",
        vocabulary=vocabulary,
        mode=targets.mode,
        width=vocabulary if targets.mode == "dense" else min(asked, vocabulary),
        precision="",
        logprob_dtype=targets.logprob_dtype,
    )
    return row_bytes(header)


def _size_of(reference: str) -> tuple[int, int, str]:
    """Return parameters and vocabulary of a checkpoint, by its config or its file's size."""
    path = Path(reference)
    if reference.startswith("hub:") or not path.exists():
        return _DEFAULT_PARAMETERS, _DEFAULT_VOCABULARY, f"{reference} taken as 135M parameters"
    if path.is_file():
        size = round(path.stat().st_size / _GGUF_BYTES)
        return size, _DEFAULT_VOCABULARY, "the size of the teacher's file"
    folder = find_output(path, "checkpoint")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    config: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = 4 if kind == "float32" else 2
    vocabulary = int(config.get("vocab_size") or _DEFAULT_VOCABULARY)
    return max(weights // width, 1), vocabulary, "the size of the teacher's weights"


def _count_tokens(recipe: DistillRecipe) -> tuple[int, int]:
    """Return about how many records and tokens there are, by the file's size and first lines."""
    path = Path(recipe.records)
    if not path.exists():
        return 100, 100 * min(256, recipe.max_tokens)
    file = find_record_file(path)
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(1 << 20)
    lines = max(head.count(b"\n"), 1)
    records = max(round(size * lines / max(len(head), 1)), 1)
    return records, min(size // _TOKEN_BYTES + 1, records * recipe.max_tokens)
