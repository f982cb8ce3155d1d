"""Memory, disk and time of the diffusion jobs, estimated without loading models."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillroom.diffusion.settings import DiffusionRecipe, NewNetworkSettings
from stillroom.jobs import Estimate
from stillroom.objects import resolve_local

__all__ = ["estimate_decoding", "estimate_training"]

_FLOPS_PER_CORE = 2.5e10  # training in float32, measured on two cores
_OVERHEAD = 500_000_000
_DEFAULT_PARAMETERS = 135_000_000
_DEFAULT_GRID = {"threshold": 4, "block_length": 3, "cache": 4, "order": 2}
_FORWARD_PASSES = 32  # of one answer, and tokens in each, where nothing is known of the records


def estimate_training(
    recipe: DiffusionRecipe,
    *,
    passes: float = 1,
    steps_per_batch: int = 1,
    has_reference: bool = False,
) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M.

    Args:
        recipe: Recipe of the job.
        passes: Training passes per record and step; a forward pass alone is a third.
        steps_per_batch: Optimizer steps per batch of records.
        has_reference: Whether a copy of the initial model is kept in memory.
    """
    parameters, vocabulary, basis = _count_parameters(recipe.model)
    records = _count_records(recipe)
    steps = (
        recipe.train.count_steps(records * steps_per_batch) if records else recipe.train.steps or 0
    )
    tokens = recipe.train.batch_size * recipe.max_tokens / 2 * steps
    speed = _FLOPS_PER_CORE * (recipe.train.threads or os.cpu_count() or 1)
    width = 4 if recipe.out.dtype == "float32" else 2
    return Estimate(
        memory_bytes=(16 + 4 * has_reference) * parameters + 8 * vocabulary * 1024 + _OVERHEAD,
        disk_bytes=parameters * (width + 4 + 12),
        seconds=6 * parameters * tokens * passes / speed + 10,
        memory_knob="lower train.micro_tokens, or set train.lora",
        disk_knob="use out.dtype: bfloat16",
        basis=f"{basis}; {records} records, {steps} steps of {recipe.train.batch_size} texts of "
        f"about {recipe.max_tokens // 2} tokens",
    )


def estimate_decoding(model: str, grid: Mapping[str, Sequence[object]], records: int) -> Estimate:
    """Estimate memory, disk and time of a decoding sweep; a missing checkpoint counts as 135M."""
    parameters, vocabulary, basis = _count_parameters(model)
    sizes = {**_DEFAULT_GRID, **{key.rpartition(".")[2]: len(row) for key, row in grid.items()}}
    settings = math.prod(sizes.values()) + 1
    tokens = settings * records * _FORWARD_PASSES**2
    return Estimate(
        memory_bytes=4 * parameters + 8 * vocabulary * 1024 + _OVERHEAD,
        disk_bytes=1000 * settings * records,
        seconds=2 * parameters * tokens / (_FLOPS_PER_CORE * (os.cpu_count() or 1)) + 10,
        memory_knob="use a smaller checkpoint",
        disk_knob="lower max_records, or the values in grid",
        basis=f"{basis}; {settings} settings on at most {records} records",
    )


def _count_parameters(model: NewNetworkSettings | str) -> tuple[int, int, str]:
    """Return parameters, vocabulary size and the basis of the estimate."""
    from stillroom.checkpoints import Checkpoint

    if isinstance(model, NewNetworkSettings):
        width = model.hidden_size
        inner = model.intermediate_size or width * 8 // 3
        layer = 4 * width**2 + 3 * width * inner
        vocabulary = 1000 if model.tokenizer.startswith("builtin:") else 50_000
        return model.num_hidden_layers * layer + vocabulary * width, vocabulary, "a new network"
    folder = Path(model)
    if not model.startswith("hub:") and folder.exists() and folder.suffix != ".gguf":
        stored = Checkpoint.open(folder)
        return stored.parameters, int(stored.config.get("vocab_size", 50_000)), folder.name
    return _DEFAULT_PARAMETERS, 50_000, f"{model}, taken as 135M"


def _count_records(recipe: DiffusionRecipe) -> int:
    from stillroom.train.data import split_records

    path = resolve_local(recipe.records)
    return len(split_records(path).train) if path.exists() else 0
