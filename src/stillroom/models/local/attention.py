"""Attention internals: KV cache with addressable slots, and capture of queries and keys.

A causal cache only grows. A text that is written in any order is read again and again at the same
places: each call here names the slots that its tokens' keys and values go to and how many slots it
sees. One ``SlotKVCache`` belongs to one text; ``join_slot_caches`` joins several for one call, so
that texts of different lengths share it without touching each other. Knows neither masks nor
positions.

They are taken where a transformers model hands them to its attention function, after rotary
embeddings and any norm of queries and keys, so that nothing need be known of a family and the fast
kernels stay in use. Nothing is copied; no matrix of scores is formed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

__all__ = [
    "AttentionInputs",
    "SlotForward",
    "SlotKVCache",
    "capture_attention",
    "join_slot_caches",
]


@dataclass(slots=True)
class SlotKVCache:
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
class SlotForward:
    """One text's part of a call: where its tokens go, and how many slots they may see.

    Args:
        space: The text's own.
        slots: Of each token, (n,), int64, distinct.
        end: Slots from 0 that attention is given.
    """

    space: SlotKVCache
    slots: Tensor
    end: int


def join_slot_caches(calls: Sequence[SlotForward]) -> Cache:
    """Return what a model takes as its cache for one call over these texts, one a row.

    Attention is given (B, H, widest end, d); rows that end earlier are padded with zeros, which the
    caller's mask must hide. A single text is given as views: nothing is copied.
    """
    numbers = iter(range(1 << 30))
    places = [_slots_as_slice(call.slots) for call in calls]
    return Cache(
        layer_class_to_replicate=cast("Any", lambda: _SlotLayer(calls, places, next(numbers)))
    )


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is not typed
    """One layer of one call."""

    def __init__(
        self, calls: Sequence[SlotForward], places: Sequence[slice | Tensor], number: int
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
        return _pad_and_join([keys for keys, _ in seen], widest), _pad_and_join(
            [each for _, each in seen], widest
        )

    def get_seq_length(self) -> int:
        """Return 0: positions and masks are the caller's."""
        return 0


def _slots_as_slice(slots: Tensor) -> slice | Tensor:
    """Return slots as they are, or as a slice where they follow each other: then it is one copy."""
    first, count = int(slots[0]), len(slots)
    is_run = int(slots[-1]) - first == count - 1 and bool((slots.diff() == 1).all())
    return slice(first, first + count) if is_run else slots


def _pad_and_join(parts: Sequence[Tensor], widest: int) -> Tensor:
    padded = [torch.nn.functional.pad(part, (0, 0, 0, widest - part.shape[2])) for part in parts]
    return torch.cat(padded)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One layer's queries (B, H, T, d) and keys (B, K, T, d), and how scores are made of them.

    Scores are ``scale * queries @ keys.T``, squashed to +-``cap`` where that is not 0. ``mask`` is
    what the function was given: (B, 1, T, T), True (or 0) where a key is seen; None is causal.
    """

    queries: Tensor
    keys: Tensor
    scale: float
    cap: float = 0.0
    mask: Tensor | None = None


@contextmanager
def capture_attention(model: nn.Module) -> Iterator[dict[int, AttentionInputs]]:
    """Within the body, collect each layer's call of attention by its number, from 0.

    Args:
        model: A transformers model, whole or its body. Layers of a model that does not go through
            the library's table of attention functions stay out of what is collected.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    found: dict[int, AttentionInputs] = {}
    name = str(getattr(getattr(model, "config", None), "_attn_implementation", None) or "")
    if name not in FUNCTIONS and name != "eager":
        yield found
        return
    known: Any = FUNCTIONS.get(name)

    def watching(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **settings: Any) -> Any:
        number = getattr(module, "layer_idx", None)
        if number is not None:
            scale = settings.get("scaling")
            mask = settings.get("attention_mask", rest[1] if len(rest) > 1 else None)
            found[int(number)] = AttentionInputs(
                query,
                key,
                float(query.shape[-1] ** -0.5 if scale is None else scale),
                float(settings.get("softcap") or 0.0),
                mask,
            )
        plain = known or sys.modules[type(module).__module__].eager_attention_forward
        return plain(module, query, key, *rest, **settings)

    FUNCTIONS[name] = watching
    try:
        yield found
    finally:
        if known is None:  # eager attention stands in each family's own module
            FUNCTIONS.pop(name)
        else:
            FUNCTIONS[name] = known
