"""DiffusionModel: a stock transformer read with explicit attention, and its head put where asked.

A ``Reading`` is one text's part of one call. States come back for the positions that are wanted
only, and logits are made of those alone: the head over a large vocabulary is most of the work of a
small model. Knows no order, no schedule and no text.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.attention import mask_for, sees
from stillroom.diffusion.metadata import DiffusionMetadata
from stillroom.diffusion.swift import SwiftBody
from stillroom.models.key_space import KeySpace, SlotCall, call_cache
from stillroom.train.lora import plain_model

__all__ = ["DiffusionModel", "Reading", "body_and_head"]


@dataclass(slots=True)
class Reading:
    """One text's part of a call.

    Args:
        ids: Tokens that are read, (n,), int64.
        positions: Of each, (n,), int64.
        seen: Which visible slots each token sees, (n, m) bool. Without keys the slots are the
            tokens themselves, m = n.
        want: Which tokens' states are wanted, indices into ``ids``, (k,).
        keys: Where keys and values are kept; None keeps nothing.
        slots: Where this call's tokens go in ``keys``, (n,).
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    want: Tensor
    keys: KeySpace | None = None
    slots: Tensor | None = None


def body_and_head(network: Any) -> tuple[Any, Any]:
    """Return the part of a causal model below its head, and the head; adapters are looked through.

    Raises:
        TypeError: If it has none.
    """
    plain: Any = plain_model(network)
    body = getattr(plain, plain.base_model_prefix, None)
    head = plain.get_output_embeddings()
    if body is None or head is None:
        raise TypeError(f"{type(plain).__name__} has no body and head of its own")
    return body, head


class DiffusionModel:
    """A network, its tokenizer and what its config says of diffusion."""

    def __init__(
        self,
        network: Any,
        metadata: DiffusionMetadata,
        *,
        tokenizer: Any = None,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        """Stand over a loaded transformers model; ``open_diffusion`` loads one.

        Args:
            network: A causal language model of transformers; its own masks are never used.
            metadata: Attention, mask token and shift.
            tokenizer: Its tokenizer, where text is wanted.
            name: For people.
            fingerprint: Of its weights.
        """
        self.network, self.metadata, self.tokenizer = network, metadata, tokenizer
        self.name, self.fingerprint = name, fingerprint
        self.body, self.head = body_and_head(network)
        self._swift = SwiftBody.of(self.body)
        parameters = inspect.signature(self.body.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        length = getattr(network.config, "max_position_embeddings", None)
        self.context_length = length if isinstance(length, int) and length > 0 else 4096
        """Places that a text may have: the positions that the network says it knows."""
        self.calls = 0
        """How many texts were read so far: number of function evaluations."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return int(self.head.weight.shape[0])

    def sees(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which key positions each query position sees, (n, m) bool."""
        metadata = self.metadata
        return sees(metadata.attention, metadata.block_size, queries, keys)

    def read(self, readings: Sequence[Reading]) -> list[Tensor]:
        """Read several texts in one call; return the wanted states of each, (k, D).

        Rows are padded on the right; padding is seen by nobody but itself. Texts read together give
        what they give alone up to rounding; a call of one text has no padding at all.
        """
        self.calls += len(readings)
        # only beside kept keys: without them states are the library's own, bit for bit
        is_small = len(readings) == 1 and readings[0].keys is not None
        if is_small and self._swift is not None and not torch.is_grad_enabled():
            return [self._read_one(self._swift, readings[0])]
        width = max(len(reading.ids) for reading in readings)
        ids = torch.zeros(len(readings), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        for row, reading in enumerate(readings):
            ids[row, : len(reading.ids)] = reading.ids
            positions[row, : len(reading.ids)] = reading.positions
        calls = [_slot_call(reading) for reading in readings if reading.keys is not None]
        if calls and len(calls) < len(readings):
            raise ValueError("readings with and without keys do not share a call")
        seen = _join_masks(readings, width)
        more = {self._cache_name: call_cache(calls), "use_cache": True} if calls else {}
        hidden = self._forward(ids, positions, seen, **({"use_cache": False} | more))
        return [hidden[row, reading.want.to(hidden.device)] for row, reading in enumerate(readings)]

    def _read_one(self, swift: SwiftBody, reading: Reading) -> Tensor:
        if reading.keys is not None and reading.slots is None:
            raise ValueError("a reading with keys says which slots it writes")
        device = self.device
        return swift.read(
            reading.ids.to(device),
            reading.positions.to(device),
            reading.seen.to(device),
            reading.want.to(device),
            reading.keys,
            None if reading.slots is None else reading.slots.to(device),
        )

    def states(
        self, ids: Tensor, positions: Tensor, seen: Tensor, *, network: Any = None
    ) -> Tensor:
        """Return all states of a batch, (B, T, D), with a graph where one is wanted.

        Args:
            ids: (B, T).
            positions: (B, T).
            seen: (B, T, T) or (1, T, T) bool; every query sees at least one key.
            network: Another wrapping of the same network, as training gives it.
        """
        return self._forward(ids, positions, seen, network=network, use_cache=False)

    def _forward(
        self, ids: Tensor, positions: Tensor, seen: Tensor, *, network: Any = None, **more: Any
    ) -> Tensor:
        body = self.body if network is None else body_and_head(network)[0]
        device = self.device
        given = body(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=mask_for(self.body, seen.to(device), self.dtype),
            **more,
        )
        hidden: Tensor = given.last_hidden_state
        return hidden

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's logits of some states, (k, V); float32 at least."""
        logits: Tensor = self.head(states)
        return logits if logits.dtype == torch.float64 else logits.float()


def _slot_call(reading: Reading) -> SlotCall:
    if reading.keys is None or reading.slots is None:
        raise ValueError("a reading with keys says which slots it writes")
    return SlotCall(reading.keys, reading.slots, reading.seen.shape[1])


def _join_masks(readings: Sequence[Reading], width: int) -> Tensor:
    """Return (B, n, m) bool; what is padded sees one key, so that no softmax is over nothing."""
    if len(readings) == 1:
        return readings[0].seen[None]
    span = max(reading.seen.shape[1] for reading in readings)
    seen = torch.zeros(len(readings), width, span, dtype=torch.bool)
    for row, reading in enumerate(readings):
        count, visible = reading.seen.shape
        seen[row, :count, :visible] = reading.seen
        if count < width:
            seen[row, count:, 0] = True
    return seen
