"""Attention internals: KV cache with addressable slots, and capture of queries and keys.

Sampling in any order recomputes the same positions repeatedly: each forward pass names the slots of
its tokens' keys and values, and the number of visible slots. A ``SlotKVCache`` belongs to one
sequence; ``join_slot_caches`` batches several of different lengths. Independent of masks and
positions.

Queries and keys are captured at transformers' attention function, after rotary embeddings and
norms, which is independent of the architecture and keeps fast kernels in use. Nothing is copied,
and no score matrix is computed.
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
    "slots_as_slice",
]


@dataclass(slots=True)
class SlotKVCache:
    """Keys and values of ``capacity`` tokens in every layer, (1, H, capacity, d) each."""

    capacity: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def ensure(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, allocated on first use; unwritten slots are 0."""
        while len(self.layers) <= layer:
            shape = (1, like.shape[1], self.capacity, like.shape[3])
            self.layers.append((like.new_zeros(shape), like.new_zeros(shape)))
        return self.layers[layer]


@dataclass(frozen=True, slots=True)
class SlotForward:
    """One sequence of a forward pass: the slots of its tokens and its visible slots.

    Args:
        space: KV cache of the sequence.
        slots: Slot of each token, (n,), int64, distinct.
        end: Number of visible slots from 0.
    """

    space: SlotKVCache
    slots: Tensor
    end: int


def join_slot_caches(calls: Sequence[SlotForward]) -> Cache:
    """Return the cache object of a forward pass over these sequences, one per row.

    Attention sees (B, H, max end, d); shorter rows are zero-padded, which the caller must mask. A
    single sequence is passed as views, without copies.
    """
    numbers = iter(range(1 << 30))
    indices = [slots_as_slice(call.slots) for call in calls]
    return Cache(
        layer_class_to_replicate=cast("Any", lambda: _SlotLayer(calls, indices, next(numbers)))
    )


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is not typed
    """One layer of a forward pass."""

    def __init__(
        self, calls: Sequence[SlotForward], indices: Sequence[slice | Tensor], number: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._places, self._number = calls, indices, number

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Write each row's new keys and values to its slots; return all visible ones."""
        visible: list[tuple[Tensor, Tensor]] = []
        for row, call in enumerate(self._calls):
            count = len(call.slots)
            spaces = call.space.ensure(self._number, key_states)
            for space, new in zip(spaces, (key_states, value_states), strict=True):
                space[:, :, self._places[row]] = new[row : row + 1, :, :count]
            visible.append((spaces[0][:, :, : call.end], spaces[1][:, :, : call.end]))
        if len(visible) == 1:
            return visible[0]
        widest = max(call.end for call in self._calls)
        return _pad_and_join([keys for keys, _ in visible], widest), _pad_and_join(
            [values for _, values in visible], widest
        )

    def get_seq_length(self) -> int:
        """Return 0: positions and masks are the caller's."""
        return 0


def slots_as_slice(slots: Tensor) -> slice | Tensor:
    """Return consecutive slots as a slice, for a write in one copy."""
    first, count = int(slots[0]), len(slots)
    is_run = int(slots[-1]) - first == count - 1 and bool((slots.diff() == 1).all())
    return slice(first, first + count) if is_run else slots


def _pad_and_join(parts: Sequence[Tensor], widest: int) -> Tensor:
    padded = [torch.nn.functional.pad(part, (0, 0, 0, widest - part.shape[2])) for part in parts]
    return torch.cat(padded)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Queries (B, H, T, d) and keys (B, K, T, d) of one layer, and the scoring parameters.

    Scores are ``scale * queries @ keys.T``, soft-capped to +-``cap`` unless 0. ``mask`` is the
    argument of the attention function: (B, 1, T, T), True (or 0) where a key is visible; None is
    causal.
    """

    queries: Tensor
    keys: Tensor
    scale: float
    cap: float = 0.0
    mask: Tensor | None = None


@contextmanager
def capture_attention(model: nn.Module) -> Iterator[dict[int, AttentionInputs]]:
    """Within the context, collect the attention inputs by layer number, from 0.

    Args:
        model: Transformers model or its body. Layers that bypass the library's table of attention
            functions are not collected.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    inputs: dict[int, AttentionInputs] = {}
    name = str(getattr(getattr(model, "config", None), "_attn_implementation", None) or "")
    if name not in FUNCTIONS and name != "eager":
        yield inputs
        return
    known: Any = FUNCTIONS.get(name)

    def watching(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **settings: Any) -> Any:
        number = getattr(module, "layer_idx", None)
        if number is not None:
            scale = settings.get("scaling")
            mask = settings.get("attention_mask", args[1] if len(args) > 1 else None)
            inputs[int(number)] = AttentionInputs(
                query,
                key,
                float(query.shape[-1] ** -0.5 if scale is None else scale),
                float(settings.get("softcap") or 0.0),
                mask,
            )
        plain = known or sys.modules[type(module).__module__].eager_attention_forward
        return plain(module, query, key, *args, **settings)

    FUNCTIONS[name] = watching
    try:
        yield inputs
    finally:
        if known is None:  # eager attention is a function of each model's module
            FUNCTIONS.pop(name)
        else:
            FUNCTIONS[name] = known
