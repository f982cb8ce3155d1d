"""Training checkpoint for resumption: weights, optimizer moments and step in one state file.

Contains the trainable weights, persistent buffers (including those of auxiliary modules: the
running statistics of a batch norm change with every step), optimizer moments and the step number.
Schedule, data order and random draws are functions of the step and the seed and are not stored.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import atomic_write
from stillroom.train.distributed import shard_like

__all__ = ["load_state", "named_buffers", "named_trainable", "save_state"]


def save_state(
    path: Path,
    identity: str,
    step: int,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Any],
    totals: dict[str, float],
    buffers: Mapping[str, Tensor] | None = None,
    notes: Sequence[tuple[Any, ...]] = (),
) -> None:
    """Write the training state atomically after ``step`` finished steps.

    Args:
        path: Destination file.
        identity: Digest of the settings and the data.
        step: Number of finished steps.
        weights: Trainable weights, by the names of ``named_trainable``.
        moments: The optimizer's ``state_dict``.
        totals: Running totals.
        buffers: Persistent buffers, by the names of ``named_buffers``.
        notes: Steps since the last committed segment, as ``StepNote``.
    """
    with atomic_write(path, "wb") as file:
        torch.save(
            {
                "identity": identity,
                "step": step,
                "weights": dict(weights),
                "optimizer": dict(moments),
                "totals": totals,
                "buffers": dict(buffers or {}),
                "notes": list(notes),
            },
            file,
        )


def load_state(
    path: Path, identity: str, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float], list[tuple[Any, ...]]]:
    """Load a saved state into modules and optimizer.

    Returns:
        The number of finished steps, the running totals, and the steps since the last committed
        segment; (0, {}, []) if there is no saved state.

    Raises:
        DataError: If the state belongs to a run with other settings, data or weights.
        IntegrityError: If the file cannot be read.
    """
    if not path.is_file():
        return 0, {}, []
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise IntegrityError(
            f"the saved training state cannot be read: {error}",
            code="train.state-damaged",
            where=str(path),
            expected="a state file written by the interrupted run",
            next="remove it to train from the first step again",
        ) from error
    parameters = dict(named_trainable(modules))
    buffers, stored = dict(named_buffers(modules)), state.get("buffers", {})
    same = set(state["weights"]) == set(parameters) and set(stored) == set(buffers)
    if state["identity"] != identity or not same:
        raise DataError(
            "the saved training state belongs to another run",
            code="train.other-run",
            where=str(path),
            expected="the settings, records and student with which it was saved",
            next="restore them, or start over with --overwrite",
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(shard_like(state["weights"][name], value))
        for name, buffer in buffers.items():
            buffer.copy_(stored[name])
    ordered = [value for group in optimizer.param_groups for value in group["params"]]
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            moments[name] = shard_like(value, ordered[number])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), dict(state["totals"]), list(state.get("notes", []))


def named_trainable(modules: Sequence[nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters by name; those of auxiliary modules are prefixed."""
    return [
        (f"beside.{name}" if number else name, value)
        for number, module in enumerate(modules)
        for name, value in module.named_parameters()
        if value.requires_grad
    ]


def named_buffers(modules: Sequence[nn.Module]) -> list[tuple[str, Tensor]]:
    """Return the persistent buffers, named as in ``named_trainable``."""
    return [
        (f"{'beside.' if number else ''}{prefix}{'.' if prefix else ''}{name}", value)
        for number, module in enumerate(modules)
        for prefix, part in module.named_modules()
        for name, value in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    ]
