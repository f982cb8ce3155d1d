"""Benchmark of prefill and decoding speed and of peak memory.

One model is in memory at a time. What depends on the clock changes from run to run: it belongs
beside an artifact, not in it. Knows a folder, not what it is compared with.
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
    """Times of each repeat, in milliseconds, and the peak of memory, in bytes (0: not known).

    Args:
        prefill_ms: To read a prompt of 128 tokens, for each repeat.
        decode_ms: To write one token after it, for each repeat.
        peak_bytes: The most that loading, reading and writing held at once, above what the process
            held before.
        dtype: Of the weights.
    """

    prefill_ms: tuple[float, ...]
    decode_ms: tuple[float, ...]
    peak_bytes: int
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "prefill_ms": list(self.prefill_ms),
            "decode_ms": list(self.decode_ms),
            "peak_bytes": self.peak_bytes,
            "dtype": self.dtype,
        }


def measure_model_speed(folder: Path) -> SpeedResult:
    """Load a checkpoint, read 128 tokens and write 16 one by one, five times after a first one.

    Args:
        folder: A checkpoint, loaded as it is served: bfloat16 where the machine multiplies it.
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
            if repeat:  # the first one warms up
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
    given = model(input_ids=ids, use_cache=True, **cache)
    _synchronize(device)
    read = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(_NEW_TOKENS):
        token = given.logits[:, -1:].argmax(-1)
        given = model(input_ids=token, use_cache=True, **cache)
    _synchronize(device)
    return read * 1000, (time.perf_counter() - begun) * 1000 / _NEW_TOKENS


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release_memory() -> None:
    """Hand freed memory back to the system, so that what comes next is seen to grow."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)


def _start_peak_memory() -> int:
    """Begin to watch the peak of memory; return what is held now, 0 where it cannot be told."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _read_process_status("VmRSS")
    except OSError:
        return 0


def _read_peak_memory(model: Any, before: int) -> int:
    """Return the peak above ``before``, 0 where it cannot be told."""
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
