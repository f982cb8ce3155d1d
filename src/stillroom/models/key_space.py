"""Keys and values of one text, in slots that calls may write again: what block-wise decoding needs.

A causal cache only grows. A text that is written in any order is read again and again at the same
places: each call here names the slots that its tokens' keys and values go to and how many slots it
sees. One ``KeySpace`` belongs to one text; ``call_cache`` joins several for one call, so that texts
of different lengths share it without touching each other. Knows neither masks nor positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

__all__ = ["KeySpace", "SlotCall", "call_cache"]


@dataclass(slots=True)
class KeySpace:
    """Room for ``capacity`` tokens' keys and values in every layer; each (1, H, capacity, d)."""

    capacity: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def ensure(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, made at the first call; slots never written are 0."""
        while len(self.layers) <= layer:
            shape = (1, like.shape[1], self.capacity, like.shape[3])
            self.layers.append((like.new_zeros(shape), like.new_zeros(shape)))
        return self.layers[layer]


@dataclass(frozen=True, slots=True)
class SlotCall:
    """One text's part of a call: where its tokens go, and how many slots they may see.

    Args:
        space: The text's own.
        slots: Of each token, (n,), int64, distinct.
        end: Slots from 0 that attention is given.
    """

    space: KeySpace
    slots: Tensor
    end: int


def call_cache(calls: Sequence[SlotCall]) -> Cache:
    """Return what a model takes as its cache for one call over these texts, one a row.

    Attention is given (B, H, widest end, d); rows that end earlier are padded with zeros, which the
    caller's mask must hide. A single text is given as views: nothing is copied.
    """
    numbers = iter(range(1 << 30))
    places = [_run_of(call.slots) for call in calls]
    return Cache(layer_class_to_replicate=cast("Any", lambda: _Layer(calls, places, next(numbers))))


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is not typed
    """One layer of one call."""

    def __init__(
        self, calls: Sequence[SlotCall], places: Sequence[slice | Tensor], number: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._places, self._number = calls, places, number

    def update(
        self, key_states: Tensor, value_states: Tensor, *rest: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Write each row's new keys and values to its slots; return all that are seen."""
        seen: list[tuple[Tensor, Tensor]] = []
        for row, call in enumerate(self._calls):
            count = len(call.slots)
            spaces = call.space.ensure(self._number, key_states)
            for space, new in zip(spaces, (key_states, value_states), strict=True):
                space[:, :, self._places[row]] = new[row : row + 1, :, :count]
            seen.append((spaces[0][:, :, : call.end], spaces[1][:, :, : call.end]))
        if len(seen) == 1:
            return seen[0]
        widest = max(call.end for call in self._calls)
        return _join([keys for keys, _ in seen], widest), _join([each for _, each in seen], widest)

    def get_seq_length(self) -> int:
        """Return 0: positions and masks are the caller's."""
        return 0


def _run_of(slots: Tensor) -> slice | Tensor:
    """Return slots as they are, or as a slice where they follow each other: then it is one copy."""
    first, count = int(slots[0]), len(slots)
    is_run = int(slots[-1]) - first == count - 1 and bool((slots.diff() == 1).all())
    return slice(first, first + count) if is_run else slots


def _join(parts: Sequence[Tensor], widest: int) -> Tensor:
    padded = [torch.nn.functional.pad(part, (0, 0, 0, widest - part.shape[2])) for part in parts]
    return torch.cat(padded)
