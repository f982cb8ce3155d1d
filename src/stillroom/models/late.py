"""Late chunking: token states of a whole text, pooled for each of its passages.

An encoder reads the text once, in windows that overlap where it is longer than the encoder reads;
a passage's vector is the mean of the states of its own tokens, which have seen the text around
them. Of two windows each gives its half of the tokens that they share, so that every token has
context on both sides. Special tokens and the prompt count to the passage at the text's beginning
or end: one passage that is all of a text has the vector it has by itself.

Source: Günther et al. 2024, arXiv:2409.04701, algorithms 1 and 2. Differs: there a token of an
overlap is given by the earlier window.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Window",
    "frame_tokens",
    "locate_tokens",
    "pool_spans",
    "split_windows",
    "token_ranges",
]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [first, last) that are read together, of which [begin, end) are given."""

    first: int
    last: int
    begin: int
    end: int


def split_windows(num_tokens: int, room: int, overlap: int) -> Iterator[Window]:
    """Yield windows of at most ``room`` tokens that share ``overlap`` tokens with the next.

    What they give is every token once.
    """
    first = begin = 0
    step = max(room - overlap, 1)
    while True:
        last = min(first + room, num_tokens)
        end = num_tokens if last == num_tokens else last - (room - step) // 2
        yield Window(first, last, begin, end)
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
    windows: Sequence[Window],
    states: Callable[[Sequence[Window]], Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]],
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
