"""Reading texts one at a time, each on one thread, with as many at once as there are threads.

What is made of a text then depends on that text alone, to the bit: a batch would pad it, and sums
of other lengths round otherwise.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from stillroom.errors import CheckpointError

__all__ = ["TextReader", "load_encoder", "longest_text"]

_LONGEST = 1 << 20
_DEFAULT = 512
T = TypeVar("T")


class TextReader:
    """A tokenizer that threads share, and the threads that read texts.

    ``truncated`` counts texts that were longer than ``max_tokens`` and read without their ends.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, device: str) -> None:
        """Read texts of at most ``max_tokens`` tokens, special ones included."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokenizer.model_max_length = _LONGEST  # lengths are handled here, with a count
        self.truncated = 0
        self._lock = threading.Lock()
        workers = len(os.sched_getaffinity(0)) if device == "cpu" else 1
        self._workers = ThreadPoolExecutor(workers, "stillroom-read", _use_one_thread)

    def encode(self, text: str, room: int, *, count: bool = True) -> list[int]:
        """Return a text's tokens with special ones around them, at most ``room``."""
        # A fast tokenizer keeps truncation as its own state: two threads must not change it.
        with self._lock:
            ids = list(self.tokenizer(text)["input_ids"])
            if len(ids) <= room:
                return ids
            self.truncated += count
            cut = self.tokenizer(text, truncation=True, max_length=room)
            return list(cut["input_ids"])

    def map(self, read: Callable[[str], T], texts: Sequence[str]) -> list[T]:
        """Return what is read of each text, in order."""
        return list(self._workers.map(read, texts))

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()


def load_encoder(
    folder: Path, loader: str, device: str, refuse: Callable[[str], CheckpointError]
) -> tuple[Any, Any, list[str]]:
    """Return tokenizer and model of a folder, and which of the model's tensors it lacks.

    Args:
        folder: A checkpoint in safetensors.
        loader: The class of transformers that opens it.
        device: Where it is computed.
        refuse: Says why the folder cannot be used.

    Raises:
        CheckpointError: As ``refuse`` makes it.
    """
    import torch
    import transformers

    from stillroom.models.causal import load_tokenizer
    from stillroom.models.pretrained import load_pretrained
    from stillroom.models.quiet import quiet_transformers

    if not folder.is_dir():
        raise refuse("it is not a folder")
    with quiet_transformers():
        try:
            model, told = load_pretrained(
                getattr(transformers, loader),
                folder,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise refuse((str(error).strip().splitlines() or ["unreadable"])[0]) from error
    missing = sorted(str(name) for name in told["missing_keys"])
    return load_tokenizer(folder), model.eval().to(device), missing


def longest_text(model: Any, tokenizer: Any, wanted: int | None) -> int:
    """Return how many tokens a model reads: what is wanted, within its positions."""
    bounds = [
        wanted or 0,
        int(getattr(model.config, "max_position_embeddings", 0) or 0),
        int(min(tokenizer.model_max_length, _LONGEST)),
    ]
    return min((bound for bound in bounds if 0 < bound < _LONGEST), default=_DEFAULT)


def _use_one_thread() -> None:
    """Keep this worker's multiplications on its own thread (the setting is the thread's own)."""
    import torch

    torch.set_num_threads(1)
