"""Benchmark of prefill and decoding speed and of peak memory.

One model is in memory at a time. Times vary between runs and do not belong in an artifact's digest.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.models.local.causal_lm import load_causal_lm

__all__ = ["SpeedResult", "measure_model_speed"]

_PROMPT_TOKENS = 128
_NEW_TOKENS = 16
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """Times per repeat in milliseconds, and peak memory in bytes (0: unknown).

    Args:
        prefill_ms: Prefill of 128 tokens, per repeat.
        decode_ms: Decoding of one token after it, per repeat.
        peak_bytes: Peak memory of loading, prefill and decoding, above that of the process before.
        dtype: Dtype of the weights.
    """

    prefill_ms: tuple[float, ...]
    decode_ms: tuple[float, ...]
    peak_bytes: int
    dtype: str


def measure_model_speed(folder: Path) -> SpeedResult:
    """Time prefill of 128 and decoding of 16 tokens, five times after a warm-up.

    Args:
        folder: Checkpoint, loaded as for serving: bfloat16 where the device supports it.
    """
    gc.collect()
    _release_memory()
    before = _start_peak_memory()
    model, _ = load_causal_lm(folder)
    room = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
    prompt = max(min(_PROMPT_TOKENS, room - _NEW_TOKENS), 1)
    reads, writes = [], []
    with torch.inference_mode():
        for repeat in range(_REPEATS + 1):
            read, write = _time_once(model, prompt)
            if repeat:  # the first is a warm-up
                reads.append(read)
                writes.append(write)
    peak = _read_peak_memory(model, before)
    return SpeedResult(
        tuple(reads),
        tuple(writes),
        peak,
        str(model.dtype).removeprefix("torch."),
    )


def _time_once(model: Any, prompt: int) -> tuple[float, float]:
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids = (torch.arange(prompt, device=device) % 16)[None]
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = {name: DynamicCache()}
    _synchronize(device)
    begun = time.perf_counter()
    output = model(input_ids=ids, use_cache=True, **cache)
    _synchronize(device)
    read = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(_NEW_TOKENS):
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, use_cache=True, **cache)
    _synchronize(device)
    return read * 1000, (time.perf_counter() - begun) * 1000 / _NEW_TOKENS


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release_memory() -> None:
    """Return freed memory to the system, so that later growth is visible."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


def _start_peak_memory() -> int:
    """Reset the peak memory; return the current memory, 0 if unknown."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _read_process_status("VmRSS")
    except OSError:
        return 0


def _read_peak_memory(model: Any, before: int) -> int:
    """Return the peak memory above ``before``, 0 if unknown."""
    if next(model.parameters()).device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if not before:
        return 0
    return max(_read_process_status("VmHWM") - before, 0)


def _read_process_status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
