"""Building blocks of text encoders: loading, threads, long-text windows, pooling, normalization.

What is made of a text then depends on that text alone, to the bit: a batch would pad it, and sums
of other lengths round otherwise.

An encoder reads the text once, in windows that overlap where it is longer than the encoder reads;
a passage's vector is the mean of the states of its own tokens, which have seen the text around
them. Of two windows each gives its half of the tokens that they share, so that every token has
context on both sides. Special tokens and the prompt count to the passage at the text's beginning
or end: one passage that is all of a text has the vector it has by itself.

Source: Günther et al. 2024, arXiv:2409.04701, algorithms 1 and 2. Differs: there a token of an
overlap is given by the earlier window.
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
    """A tokenizer that threads share, and the threads that read texts.

    ``truncated`` counts texts that were longer than ``max_tokens`` and read without their ends.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, device: str) -> None:
        """Read texts of at most ``max_tokens`` tokens, special ones included."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokenizer.model_max_length = _UNLIMITED  # lengths are handled here, with a count
        self.truncated = 0
        self._lock = threading.Lock()
        workers = len(os.sched_getaffinity(0)) if device == "cpu" else 1
        self._workers = ThreadPoolExecutor(workers, "stillroom-read", _limit_to_one_thread)

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

    from stillroom.models.local.causal_lm import load_pretrained, load_tokenizer
    from stillroom.models.local.runtime import silence_transformers

    if not folder.is_dir():
        raise refuse("it is not a folder")
    with silence_transformers():
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


def find_max_tokens(model: Any, tokenizer: Any, wanted: int | None) -> int:
    """Return how many tokens a model reads: what is wanted, within its positions."""
    bounds = [
        wanted or 0,
        int(getattr(model.config, "max_position_embeddings", 0) or 0),
        int(min(tokenizer.model_max_length, _UNLIMITED)),
    ]
    return min((bound for bound in bounds if 0 < bound < _UNLIMITED), default=_DEFAULT_MAX_TOKENS)


def _limit_to_one_thread() -> None:
    """Keep this worker's multiplications on its own thread (the setting is the thread's own)."""
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class EncoderWindow:
    """Tokens [first, last) that are read together, of which [begin, end) are given."""

    first: int
    last: int
    begin: int
    end: int


def split_windows(num_tokens: int, room: int, overlap: int) -> Iterator[EncoderWindow]:
    """Yield windows of at most ``room`` tokens that share ``overlap`` tokens with the next.

    What they give is every token once.
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
    """Return the tokens before a text, special ones and the prompt's, and those after it."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    asked = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    places = range(len(whole) - len(bare) + 1)
    at = next((one for one in places if whole[one : one + len(bare)] == bare), 0)
    return [*whole[:at], *asked], whole[at + len(bare) :]


def locate_tokens(tokenizer: Any, text: str, lower: bool) -> tuple[list[int], list[int]]:
    """Return a whole text's tokens, without special ones, and the last character of each."""
    if lower:  # letter by letter, so that places stay
        text = "".join(small if len(small := one.lower()) == 1 else one for one in text)
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(told["input_ids"]), [max(end - 1, start) for start, end in told["offset_mapping"]]


def token_ranges(places: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (first, last + 1) of the tokens that end within each span; at least one for each.

    Args:
        places: The last character of each token, rising: some tokens begin with a space that is
            still the span's before.
        spans: Of characters.
    """
    ranges = []
    for start, end in spans:
        first, last = bisect_left(places, start), bisect_left(places, end)
        if first == last:  # nothing of it is a token of its own: the one it is part of
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
        windows: In order.
        states: Gives for windows the states before their tokens, of their tokens, and after them.
        ranges: First and last + 1 of each passage's tokens.
        dimensions: Length of a state.
        group: Windows read at once; no more states than theirs lie in memory.
    """
    sums = np.zeros((len(ranges), dimensions))
    counts = np.zeros(len(ranges))
    total = windows[-1].last
    for start in range(0, len(windows), group):
        several = windows[start : start + group]
        for window, (lead, own, tail) in zip(several, states(several), strict=True):
            for at, (first, last) in enumerate(ranges):
                low, high = max(first, window.begin), min(last, window.end)
                parts = [own[low - window.first : high - window.first]] if low < high else []
                if first == 0 and window.first == 0:
                    parts.append(lead)
                if last == total == window.last:
                    parts.append(tail)
                for part in parts:
                    sums[at] += part.sum(axis=0, dtype=np.float64)
                    counts[at] += len(part)
    return sums / counts[:, None]


SPECIAL_TOKENS = 2


"""What tokenizers of encoders put around a text, at most."""


def get_max_text_tokens(embedder: Embedder) -> int:
    """Return how many tokens a text may have so that an embedder reads all of it."""
    return embedder.max_tokens - SPECIAL_TOKENS


def check_not_empty(texts: Sequence[str]) -> None:
    """Refuse texts without any visible character.

    Raises:
        DataError: If there is one: its vector would have no direction, and NaN would rank first.
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
    """Return rows of length 1, (N, D) float32, computed in float64.

    Raises:
        DataError: If a row is zero or not finite.
    """
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise DataError(
            "the embedder gave a vector without direction (zero, or not a number)",
            code="data.bad-vector",
            expected="finite vectors that are not zero",
            next="check the checkpoint, or use dtype float32",
        )
    unit: Vectors = (wide / lengths).astype(np.float32)
    return unit
