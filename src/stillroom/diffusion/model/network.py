"""Stock transformer with explicit attention masks, and its fast path for small decoding steps.

A ``ForwardRequest`` is one text's part of one call. States come back for the positions that are
wanted only, and logits are made of those alone: the head over a large vocabulary is most of the
work of a small model. Knows no order, no schedule and no text.

A mask given to a transformers model must have four dimensions and the form that its attention
function reads: booleans for sdpa, numbers to add for eager. A missing or two-dimensional one falls
back to causal attention without a word, and booleans added as numbers mask nothing at all.

A step of decoding reads a few dozen tokens, and there the work of a library's own modules (norms in
five operations, rotary embeddings in six, calls around calls) is as much as the products of
matrices. Here each layer is the same mathematics in few operations: fused norms, keys and values
written straight into their slots, no mask where everything is seen, and the last layer finished for
the wanted tokens alone. What is not known for certain is left to the library: then ``of`` returns
None. Agrees with the library up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.diffusion.model.metadata import AttentionKind, DiffusionMetadata
from stillroom.errors import CheckpointError
from stillroom.models.local.attention import SlotForward, SlotKVCache, join_slot_caches
from stillroom.train.lora import unwrap_model

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "DiffusionModel",
    "FastLlamaBody",
    "ForwardRequest",
    "build_attention_mask",
    "build_training_mask",
    "format_mask",
    "split_body_and_head",
]


@dataclass(slots=True)
class ForwardRequest:
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
    keys: SlotKVCache | None = None
    slots: Tensor | None = None


def split_body_and_head(network: Any) -> tuple[Any, Any]:
    """Return the part of a causal model below its head, and the head; adapters are looked through.

    Raises:
        TypeError: If it has none.
    """
    plain: Any = unwrap_model(network)
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
        self.body, self.head = split_body_and_head(network)
        self._swift = FastLlamaBody.of(self.body)
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
        return build_attention_mask(metadata.attention, metadata.block_size, queries, keys)

    def read(self, readings: Sequence[ForwardRequest]) -> list[Tensor]:
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
        calls = [_slot_forward(reading) for reading in readings if reading.keys is not None]
        if calls and len(calls) < len(readings):
            raise ValueError("readings with and without keys do not share a call")
        seen = _join_masks(readings, width)
        more = {self._cache_name: join_slot_caches(calls), "use_cache": True} if calls else {}
        hidden = self._forward(ids, positions, seen, **({"use_cache": False} | more))
        return [hidden[row, reading.want.to(hidden.device)] for row, reading in enumerate(readings)]

    def _read_one(self, swift: FastLlamaBody, reading: ForwardRequest) -> Tensor:
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
        body = self.body if network is None else split_body_and_head(network)[0]
        device = self.device
        given = body(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=format_mask(self.body, seen.to(device), self.dtype),
            **more,
        )
        hidden: Tensor = given.last_hidden_state
        return hidden

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's logits of some states, (k, V); float32 at least."""
        logits: Tensor = self.head(states)
        return logits if logits.dtype == torch.float64 else logits.float()


def _slot_forward(reading: ForwardRequest) -> SlotForward:
    if reading.keys is None or reading.slots is None:
        raise ValueError("a reading with keys says which slots it writes")
    return SlotForward(reading.keys, reading.slots, reading.seen.shape[1])


def _join_masks(readings: Sequence[ForwardRequest], width: int) -> Tensor:
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


ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")


def build_attention_mask(
    attention: AttentionKind, block_size: int | None, queries: Tensor, keys: Tensor
) -> Tensor:
    """Return which keys each query sees, (n, m) bool.

    Args:
        attention: full, block_causal or causal.
        block_size: Of block_causal; blocks are counted from position 0.
        queries: Positions, (n,), int64.
        keys: Positions, (m,), int64.
    """
    if attention == "full":
        return queries.new_ones(len(queries), len(keys), dtype=torch.bool)
    if attention == "block_causal":
        size = block_size or 1
        queries, keys = queries // size, keys // size
    return queries[:, None] >= keys[None, :]


def build_training_mask(
    length: int, block_size: int, *, device: torch.device | None = None
) -> Tensor:
    """Return the mask of one pass over a noisy and a clean copy of a text, (2T, 2T) bool.

    Rows and columns are the T noisy tokens, then the T clean ones. A noisy token sees the noisy
    ones of its own block and the clean ones of the blocks before; a clean one the clean ones of its
    own block and before.

    Source: Arriola et al. 2025, arXiv:2503.09573, section 3.1 and figure 4.
    """
    block = torch.arange(length, device=device) // block_size
    own, before = block[:, None] == block[None, :], block[:, None] > block[None, :]
    top = torch.cat([own, before], 1)  # (T, 2T)
    bottom = torch.cat([torch.zeros_like(own), own | before], 1)
    return torch.cat([top, bottom])


def format_mask(network: Any, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask in the form that a network's attention function reads, (B, 1, n, m).

    Args:
        network: A transformers model.
        seen: True where a key is seen, (B, n, m); every query must see at least one.
        dtype: Of the network's states.

    Raises:
        CheckpointError: If the network attends with a function whose masks are not known.
    """
    name = str(getattr(network.config, "_attn_implementation", ""))
    if name == "sdpa":
        return seen[:, None]
    if name == "eager":
        least = torch.finfo(dtype).min
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, least)[
            :, None
        ]
    raise CheckpointError(
        f"attention by '{name}' takes no explicit mask that this room knows",
        code="diffusion.attention",
        expected=f"one of: {', '.join(ATTENTION_IMPLEMENTATIONS)}",
        next="load the model with attn_implementation sdpa",
    )


_BODIES = frozenset({"LlamaModel", "Qwen2Model", "Qwen3Model"})


_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # those that do not hang on the length


@dataclass(frozen=True, slots=True)
class FastLlamaBody:
    """The layers of a body, and their shapes.

    Args:
        body: The library's own, whose weights are read.
        heads: Of queries.
        key_heads: Of keys and values; they divide ``heads``.
        width: Numbers of a head.
    """

    body: Any
    heads: int
    key_heads: int
    width: int

    @classmethod
    def of(cls, body: Any) -> FastLlamaBody | None:
        """Return a swift reading of a body, or None where it is not known to be the same."""
        config = getattr(body, "config", None)
        if type(body).__name__ not in _BODIES or config is None:
            return None
        rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        is_known = (
            type(body).__module__.startswith("transformers.models.")
            and config._attn_implementation == "sdpa"
            and kinds == {"full_attention"}
            and rotary in _ROTARY
            and all(_is_plain(layer) for layer in body.layers)
        )
        if not is_known:
            return None
        heads = int(config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(body, heads, int(config.num_key_value_heads), width)

    def read(
        self,
        ids: Tensor,
        positions: Tensor,
        seen: Tensor,
        want: Tensor,
        keys: SlotKVCache | None,
        slots: Tensor | None,
    ) -> Tensor:
        """Return the wanted states of one text, (k, D).

        Args:
            ids: (n,).
            positions: (n,).
            seen: (n, m) bool.
            want: Indices into ``ids``, (k,).
            keys: Where keys and values are kept; None keeps nothing, and m = n.
            slots: Where this call's go, (n,).
        """
        body = self.body
        x = body.embed_tokens(ids)  # (n, D)
        cos, sin = body.rotary_emb(x[None], positions[None])
        half = self.width // 2
        # rotating by halves is rolling by half, with the sine of the first half turned round
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)[:, None]  # (n, 1, d)
        rotary = cos[0][:, None], sin
        is_all = len(want) == len(ids)
        last = len(body.layers) - 1
        mask = None if bool(seen.all()) else seen
        at = None if slots is None else _slots_as_slice(slots)
        for number, layer in enumerate(body.layers):
            chosen = want if number == last and not is_all else None
            x = self._layer(layer, number, x, rotary, mask, (keys, at, seen.shape[1]), chosen)
        if is_all:
            x = x[want]
        return _norm(body.norm, x)

    def _layer(
        self,
        layer: Any,
        number: int,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        kept: tuple[SlotKVCache | None, slice | Tensor | None, int],
        chosen: Tensor | None,
    ) -> Tensor:
        """Return a layer's states, (n, D); with ``chosen`` only of those, (k, D)."""
        own, heads = layer.self_attn, self.heads
        h = _norm(layer.input_layernorm, x)
        k = _linear(own.k_proj, h).view(-1, self.key_heads, self.width)
        v = _linear(own.v_proj, h).view(-1, self.key_heads, self.width)
        k = _rotate(_head_norm(own, "k_norm", k), rotary)
        if chosen is not None:
            x, h = x[chosen], h[chosen]
            rotary = rotary[0][chosen], rotary[1][chosen]
            mask = None if mask is None else mask[chosen]
        q = _linear(own.q_proj, h).view(-1, heads, self.width)
        q = _rotate(_head_norm(own, "q_norm", q), rotary)
        found = self._attend(
            q, *_store_keys_values(k.transpose(0, 1), v.transpose(0, 1), number, kept), mask
        )
        x = x + _linear(own.o_proj, found)
        h = _norm(layer.post_attention_layernorm, x)
        inner = functional.silu(_linear(layer.mlp.gate_proj, h)) * _linear(layer.mlp.up_proj, h)
        return x + _linear(layer.mlp.down_proj, inner)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return what queries (n, H, d) find among keys and values (1, h, m, d), (n, H d)."""
        count, group = len(q), self.heads // self.key_heads
        # queries that share keys follow each other, so that no key is copied: (1, h, g n, d)
        q = q.view(count, self.key_heads, group, self.width).permute(1, 2, 0, 3)
        q = q.reshape(1, self.key_heads, group * count, self.width)
        if mask is not None and group > 1:
            mask = mask.repeat(group, 1)
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found = found.view(self.key_heads, group, count, self.width).permute(2, 0, 1, 3)
        return found.reshape(count, self.heads * self.width)


def _store_keys_values(
    k: Tensor, v: Tensor, number: int, kept: tuple[SlotKVCache | None, slice | Tensor | None, int]
) -> tuple[Tensor, Tensor]:
    """Write a layer's keys and values (h, n, d) to their slots; return all that are seen."""
    space, at, end = kept
    if space is None or at is None:
        return k[None], v[None]
    keys, values = space.ensure(number, k[None])
    keys[0, :, at] = k
    values[0, :, at] = v
    return keys[:, :, :end], values[:, :, :end]


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn heads, (n, H, d), by their positions."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _norm(module: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        found: Tensor = module(x)  # the library's norm is in float32 whatever it is given
        return found
    shape = module.weight.shape
    scaled: Tensor = functional.rms_norm(x, shape, None, module.variance_epsilon) * module.weight
    return scaled


def _head_norm(attention: Any, name: str, x: Tensor) -> Tensor:
    module = getattr(attention, name, None)
    return x if module is None else _norm(module, x)


def _linear(module: Any, x: Tensor) -> Tensor:
    return functional.linear(x, module.weight, module.bias)


def _slots_as_slice(slots: Tensor) -> slice | Tensor:
    """Return slots as a slice where they follow each other: then they are written in one copy."""
    first, count = int(slots[0]), len(slots)
    is_run = int(slots[-1]) - first == count - 1 and bool((slots.diff() == 1).all())
    return slice(first, first + count) if is_run else slots


def _is_plain(layer: Any) -> bool:
    """Return whether a layer is what is computed here: no adapters, hooks or other functions."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    parts = [layer, attention, mlp, *linears]
    act = type(mlp.act_fn).__name__
    return (
        all(type(linear) is nn.Linear for linear in linears)
        and act in ("SiLU", "SiLUActivation")
        and getattr(attention, "sliding_window", None) is None
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )
