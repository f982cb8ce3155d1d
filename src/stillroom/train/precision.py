"""Mixed precision (bf16 autocast), gradient checkpointing, threads and determinism of torch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from stillroom.models.local.causal_lm import choose_dtype
from stillroom.train.lora import unwrap_model
from stillroom.train.settings import TrainSettings

__all__ = [
    "autocast_body",
    "choose_precision",
    "deterministic_torch",
    "limit_threads",
    "matmul_dtype",
]


def choose_precision(setting: str, device: torch.device) -> str:
    """Return ``float32`` or ``bfloat16`` for a setting of ``auto``, ``float32`` or ``bfloat16``."""
    if setting != "auto":
        return setting
    return "bfloat16" if choose_dtype("auto", device) is torch.bfloat16 else "float32"


@contextlib.contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Limit torch to a number of CPU threads within the body.

    0 uses every core, divided among the processes of a launcher on this machine.
    """
    before = torch.get_num_threads()
    neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // neighbors))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic_torch(settings: TrainSettings, model: nn.Module) -> Iterator[str]:
    """Configure torch and the model for a reproducible run, and restore both afterwards.

    Within the body the model is in training mode, the number of CPU threads is fixed (it affects
    the rounding of sums), and the caller's random state is preserved.

    Yields:
        The chosen precision: ``float32`` or ``bfloat16``.
    """
    device, was_training = next(model.parameters()).device, model.training
    plain = unwrap_model(model)
    if settings.gradient_checkpointing:
        _set_gradient_checkpointing(plain, on=True)
    model.train()
    devices = [device] if device.type == "cuda" else []
    try:
        with limit_threads(settings.threads), torch.random.fork_rng(devices=devices):
            yield choose_precision(settings.precision, device)
    finally:
        model.train(was_training)
        if settings.gradient_checkpointing:
            _set_gradient_checkpointing(plain, on=False)


def autocast_body(
    precision: str, device: torch.device
) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context for a transformer's body.

    Weights, sums and optimizer stay float32; matrix products take bfloat16 operands.
    """
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def matmul_dtype(precision: str) -> torch.dtype | None:
    """Return the operand type of matrix products outside autocast; None keeps their own."""
    return torch.bfloat16 if precision == "bfloat16" else None


def _set_gradient_checkpointing(model: nn.Module, *, on: bool) -> None:
    """Turn gradient checkpointing of a Hugging Face model on or off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # older versions lack the new name
        if on:
            cast("Any", model).gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        else:
            cast("Any", model).gradient_checkpointing_disable()
