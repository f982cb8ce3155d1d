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

from stillroom.models.local.causal_lm import load_model_only

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
    bytes_before = _start_peak_memory()
    model = load_model_only(folder)
    context_length = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
    prompt_tokens = max(min(_PROMPT_TOKENS, context_length - _NEW_TOKENS), 1)
    prefill_ms, decode_ms = [], []
    with torch.inference_mode():
        for repeat in range(_REPEATS + 1):
            prefill, decode = _time_pass(model, prompt_tokens)
            if repeat:  # the first is a warm-up
                prefill_ms.append(prefill)
                decode_ms.append(decode)
    peak_bytes = _read_peak_memory(model, bytes_before)
    dtype = str(model.dtype).removeprefix("torch.")
    return SpeedResult(tuple(prefill_ms), tuple(decode_ms), peak_bytes, dtype)


def _time_pass(model: Any, prompt_tokens: int) -> tuple[float, float]:
    """Return the milliseconds of prefill, and of decoding per token."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids = (torch.arange(prompt_tokens, device=device) % 16)[None]
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = {name: DynamicCache()}
    _synchronize(device)
    start = time.perf_counter()
    output = model(input_ids=ids, use_cache=True, **cache)
    _synchronize(device)
    prefilled = time.perf_counter()
    for _ in range(_NEW_TOKENS):
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, use_cache=True, **cache)
    _synchronize(device)
    decode_s = time.perf_counter() - prefilled
    return (prefilled - start) * 1000, decode_s * 1000 / _NEW_TOKENS


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


def _read_peak_memory(model: Any, bytes_before: int) -> int:
    """Return the peak memory above ``bytes_before``, 0 if unknown."""
    if next(model.parameters()).device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return max(_read_process_status("VmHWM") - bytes_before, 0) if bytes_before else 0


def _read_process_status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
