"""Building blocks of text encoders: loading, threads, long-text windows, pooling, normalization.

Texts are encoded one at a time, so that a result depends on its text alone, bit for bit: batches
are padded, and sums of other lengths round differently.

Late chunking: the encoder reads a text once, in overlapping windows if it is too long; the vector
of a passage is the mean of its token states, which have attended to the text around them. Two
windows each contribute half of their overlap, so that every token has context on both sides.
Special tokens and the prompt count to the passage at the beginning or end of the text: a passage
that is the whole text has the vector of the text alone.

Source: Günther et al. 2024, arXiv:2409.04701, algorithms 1 and 2. Differs: there the tokens of an
overlap are from the earlier window.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.errors import CheckpointError, DataError
from stillroom.models.interfaces import Embedder, Vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SPECIAL_TOKENS",
    "EncoderWindow",
    "TextReader",
    "check_not_empty",
    "find_max_tokens",
    "frame_tokens",
    "get_max_text_tokens",
    "load_encoder",
    "locate_tokens",
    "normalize_rows",
    "pool_spans",
    "split_windows",
    "token_ranges",
]

_UNLIMITED = 1 << 20
_DEFAULT_MAX_TOKENS = 512
T = TypeVar("T")


class TextReader:
    """A tokenizer shared by threads, and the threads that encode texts.

    ``truncated`` counts texts truncated to ``max_tokens``.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, device: str) -> None:
        """Set the maximum number of tokens, special tokens included."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokenizer.model_max_length = _UNLIMITED  # truncation is done here, and counted
        self.truncated = 0
        self._lock = threading.Lock()
        workers = len(os.sched_getaffinity(0)) if device == "cpu" else 1
        self._workers = ThreadPoolExecutor(workers, "stillroom-read", _limit_to_one_thread)

    def encode(self, text: str, room: int, *, count: bool = True) -> list[int]:
        """Return the token ids of a text with special tokens, at most ``room``."""
        # Truncation is state of a fast tokenizer, which threads must not change concurrently.
        with self._lock:
            ids = list(self.tokenizer(text)["input_ids"])
            if len(ids) <= room:
                return ids
            self.truncated += count
            cut = self.tokenizer(text, truncation=True, max_length=room)
            return list(cut["input_ids"])

    def map(self, read: Callable[[str], T], texts: Sequence[str]) -> list[T]:
        """Apply a function to each text on the worker threads, in order."""
        return list(self._workers.map(read, texts))

    def close(self) -> None:
        """Shut down the worker threads."""
        self._workers.shutdown()


def load_encoder(
    folder: Path, loader: str, device: str, refuse: Callable[[str], CheckpointError]
) -> tuple[Any, Any, list[str]]:
    """Load tokenizer and model of a folder, and list the model's missing tensors.

    Raises:
        CheckpointError: As returned by ``refuse``.
    """
    import torch
    import transformers

    from stillroom.models.local.causal_lm import load_pretrained, load_tokenizer
    from stillroom.models.local.runtime import silence_transformers

    if not folder.is_dir():
        raise refuse("it is not a folder")
    with silence_transformers():
        try:
            model, report = load_pretrained(
                getattr(transformers, loader),
                folder,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise refuse((str(error).strip().splitlines() or ["unreadable"])[0]) from error
    missing = sorted(str(name) for name in report["missing_keys"])
    return load_tokenizer(folder), model.eval().to(device), missing


def find_max_tokens(model: Any, tokenizer: Any, max_tokens: int | None) -> int:
    """Return the maximum number of tokens, limited by the model's positions."""
    bounds = [
        max_tokens or 0,
        int(getattr(model.config, "max_position_embeddings", 0) or 0),
        int(min(tokenizer.model_max_length, _UNLIMITED)),
    ]
    return min((bound for bound in bounds if 0 < bound < _UNLIMITED), default=_DEFAULT_MAX_TOKENS)


def _limit_to_one_thread() -> None:
    """Limit torch to one thread on this worker (the setting is thread-local)."""
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class EncoderWindow:
    """Tokens [first, last) that are read together, of which [begin, end) are used."""

    first: int
    last: int
    begin: int
    end: int


def split_windows(num_tokens: int, room: int, overlap: int) -> Iterator[EncoderWindow]:
    """Yield windows of at most ``room`` tokens that overlap the next by ``overlap`` tokens.

    Their used ranges cover every token once.
    """
    first = begin = 0
    step = max(room - overlap, 1)
    while True:
        last = min(first + room, num_tokens)
        end = num_tokens if last == num_tokens else last - (room - step) // 2
        yield EncoderWindow(first, last, begin, end)
        if last == num_tokens:
            return
        first, begin = first + step, end


def frame_tokens(tokenizer: Any, prompt: str) -> tuple[list[int], list[int]]:
    """Return the tokens before a text, special ones and the prompt, and those after it."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a")["input_ids"])
    prompt_ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    starts = range(len(framed) - len(bare) + 1)
    start = next((index for index in starts if framed[index : index + len(bare)] == bare), 0)
    return [*framed[:start], *prompt_ids], framed[start + len(bare) :]


def locate_tokens(tokenizer: Any, text: str, lower: bool) -> tuple[list[int], list[int]]:
    """Return the token ids of a text, without special tokens, and the last character of each."""
    if lower:  # character by character, so that offsets are kept
        text = "".join(
            small if len(small := character.lower()) == 1 else character for character in text
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [
        max(end - 1, start) for start, end in encoding["offset_mapping"]
    ]


def token_ranges(
    last_characters: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return (first, last + 1) of the tokens that end within each span; at least one per span.

    Args:
        last_characters: Last character of each token, ascending: some tokens begin with a space
            that is outside the span.
        spans: Character spans.
    """
    ranges = []
    for start, end in spans:
        first, last = bisect_left(last_characters, start), bisect_left(last_characters, end)
        if first == last:  # the span is within a token
            first = max(first - 1, 0)
            last = first + 1
        ranges.append((first, last))
    return ranges


def pool_spans(
    windows: Sequence[EncoderWindow],
    states: Callable[
        [Sequence[EncoderWindow]], Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
    ],
    ranges: Sequence[tuple[int, int]],
    dimensions: int,
    *,
    group: int = 8,
) -> NDArray[np.float64]:
    """Return the mean of the states of each range of tokens, (N, D) float64.

    Args:
        windows: Windows in order.
        states: Returns, per window, the states before its tokens, of its tokens, and after them.
        ranges: First and last + 1 token of each passage.
        dimensions: Length of a state.
        group: Windows read at a time; bounds the memory.
    """
    sums = np.zeros((len(ranges), dimensions))
    counts = np.zeros(len(ranges))
    total = windows[-1].last
    for start in range(0, len(windows), group):
        several = windows[start : start + group]
        for window, (lead, inner, tail) in zip(several, states(several), strict=True):
            for index, (first, last) in enumerate(ranges):
                low, high = max(first, window.begin), min(last, window.end)
                parts = [inner[low - window.first : high - window.first]] if low < high else []
                if first == 0 and window.first == 0:
                    parts.append(lead)
                if last == total == window.last:
                    parts.append(tail)
                for part in parts:
                    sums[index] += part.sum(axis=0, dtype=np.float64)
                    counts[index] += len(part)
    return sums / counts[:, None]


SPECIAL_TOKENS = 2
"""Maximum number of special tokens that encoders add to a text."""


def get_max_text_tokens(embedder: Embedder) -> int:
    """Return the maximum tokens of a text that an embedder reads completely."""
    return embedder.max_tokens - SPECIAL_TOKENS


def check_not_empty(texts: Sequence[str]) -> None:
    """Check that every text has a visible character.

    Raises:
        DataError: If one has none: its vector would have no direction, and NaN would rank first.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise DataError(
                f"text {number} of {len(texts)} is empty",
                code="data.empty-text",
                expected="at least one visible character",
                next="drop empty passages before embedding",
            )


def normalize_rows(rows: Vectors) -> Vectors:
    """Normalize rows to unit length, (N, D) float32, computed in float64.

    Raises:
        DataError: If a row is zero or not finite.
    """
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise DataError(
            "the embedder returned a vector without direction (zero or NaN)",
            code="data.bad-vector",
            expected="finite nonzero vectors",
            next="check the checkpoint, or use dtype float32",
        )
    unit: Vectors = (wide / lengths).astype(np.float32)
    return unit
