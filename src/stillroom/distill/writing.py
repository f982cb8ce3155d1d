"""Writing students: the final checkpoint and the candidates along the run, with their cards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from stillroom.checkpoints import CheckpointWriter
from stillroom.checkpoints.quantization import plain_config
from stillroom.checkpoints.writer import plan_tensors
from stillroom.distill.recipe import OutSettings
from stillroom.jobs import atomic_write
from stillroom.train.lora import export_adapter, export_tensors

__all__ = ["ADAPTER", "candidate_steps", "keep_candidates", "write_adapter", "write_student"]

CANDIDATES = "candidates"
ADAPTER = "adapter"


def candidate_steps(steps: int, candidates: int) -> set[int]:
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
    out: OutSettings,
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
    config = plain_config(json.loads((like / "config.json").read_text(encoding="utf-8")))
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
    model: nn.Module, folder: Path, base: str, out: OutSettings, *, writes: bool = True
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


def keep_candidates(
    folder: Path,
    like: Path,
    steps: set[int],
    out: OutSettings,
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
