"""Transformer with bidirectional or block-causal attention masks, and a fast decoding path.

A ``ForwardRequest`` is one sequence of a batched forward pass. States are returned for the
requested positions only, and logits computed from those: in a small model, the head over a large
vocabulary is most of the work. Independent of training, sampling and text.

Masks for transformers models must have four dimensions and the dtype of their attention function:
bool for sdpa, additive floats for eager. A missing or two-dimensional mask silently falls back to
causal attention, and an additive bool masks nothing.

A decoding step reads a few dozen tokens; the overhead of the library's modules (norms in five
operations, rotary embeddings in six, nested calls) is then as large as the matrix products.
``FastLlamaBody`` computes the same layers in few operations: fused norms, keys and values written
directly to their slots, no mask where everything is visible, and the last layer for the requested
tokens alone. For other bodies ``FastLlamaBody.from_body`` returns None.
Equal to the library up to rounding.
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
from stillroom.models.local.attention import (
    SlotForward,
    SlotKVCache,
    join_slot_caches,
    slots_as_slice,
)
from stillroom.train.lora import unwrap_model

__all__ = [
    "DiffusionModel",
    "FastLlamaBody",
    "ForwardRequest",
    "build_attention_mask",
    "build_block_diff_mask",
    "format_mask",
    "split_body_and_head",
]


@dataclass(slots=True)
class ForwardRequest:
    """Forward request: one sequence of a forward pass.

    Args:
        ids: Input tokens, (n,), int64.
        positions: Position of each, (n,), int64.
        seen: Attention mask over visible slots, (n, m) bool. Without a cache the slots are the
            tokens themselves, m = n.
        want: Tokens whose states are returned, indices into ``ids``, (k,).
        keys: KV cache; None for none.
        slots: Slots of the input tokens in ``keys``, (n,).
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    want: Tensor
    keys: SlotKVCache | None = None
    slots: Tensor | None = None


def split_body_and_head(network: Any) -> tuple[Any, Any]:
    """Return the body and the head of a causal language model; adapters are unwrapped.

    Raises:
        TypeError: If it has no separate body and head.
    """
    plain: Any = unwrap_model(network)
    body = getattr(plain, plain.base_model_prefix, None)
    head = plain.get_output_embeddings()
    if body is None or head is None:
        raise TypeError(f"{type(plain).__name__} has no separate body and head")
    return body, head


class DiffusionModel:
    """A network with its tokenizer and diffusion metadata."""

    def __init__(
        self,
        network: Any,
        metadata: DiffusionMetadata,
        *,
        tokenizer: Any = None,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        """Wrap a transformers model; ``open_diffusion`` loads one.

        Args:
            network: Causal language model of transformers; its own attention masks are unused.
            metadata: Attention, mask token and logit shift.
            tokenizer: Tokenizer; required for text.
            name: Display name.
            fingerprint: Fingerprint of the weights.
        """
        self.network, self.metadata, self.tokenizer = network, metadata, tokenizer
        self.name, self.fingerprint = name, fingerprint
        self.body, self.head = split_body_and_head(network)
        self._swift = FastLlamaBody.from_body(self.body)
        parameters = inspect.signature(self.body.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        length = getattr(network.config, "max_position_embeddings", None)
        self.context_length = length if isinstance(length, int) and length > 0 else 4096
        """Maximum sequence length."""
        self.calls = 0
        """Number of function evaluations: sequences read so far."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """Vocabulary size: rows of the head."""
        return int(self.head.weight.shape[0])

    def attention_mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the attention mask of query positions over key positions, (n, m) bool."""
        metadata = self.metadata
        return build_attention_mask(metadata.attention, metadata.block_size, queries, keys)

    def read(self, readings: Sequence[ForwardRequest]) -> list[Tensor]:
        """Run one forward pass over several sequences; return the requested states of each, (k, D).

        Rows are padded on the right; nothing but padding attends to padding. Batched sequences
        equal single ones up to rounding; a batch of one has no padding.
        """
        self.calls += len(readings)
        # with a cache only: states without one are the library's own, bit for bit
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
            raise ValueError("requests with and without a cache cannot share a forward pass")
        mask = _join_masks(readings, width)
        more = {self._cache_name: join_slot_caches(calls), "use_cache": True} if calls else {}
        hidden = self._forward(ids, positions, mask, **({"use_cache": False} | more))
        return [hidden[row, reading.want.to(hidden.device)] for row, reading in enumerate(readings)]

    def _read_one(self, swift: FastLlamaBody, reading: ForwardRequest) -> Tensor:
        if reading.keys is not None and reading.slots is None:
            raise ValueError("a request with a cache needs slots")
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
        self, ids: Tensor, positions: Tensor, mask: Tensor, *, network: Any = None
    ) -> Tensor:
        """Return all states of a batch, (B, T, D), with gradients where enabled.

        Args:
            ids: Input tokens, (B, T).
            positions: Position of each, (B, T).
            mask: Attention mask, (B, T, T) or (1, T, T) bool; every row has at least one True.
            network: Wrapper of the same network, as the training loop passes it.
        """
        return self._forward(ids, positions, mask, network=network, use_cache=False)

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, *, network: Any = None, **more: Any
    ) -> Tensor:
        body = self.body if network is None else split_body_and_head(network)[0]
        device = self.device
        output = body(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=format_mask(self.body, mask.to(device), self.dtype),
            **more,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of states, (k, V); at least float32."""
        logits: Tensor = self.head(states)
        return logits if logits.dtype == torch.float64 else logits.float()


def _slot_forward(reading: ForwardRequest) -> SlotForward:
    if reading.keys is None or reading.slots is None:
        raise ValueError("a request with a cache needs slots")
    return SlotForward(reading.keys, reading.slots, reading.seen.shape[1])


def _join_masks(readings: Sequence[ForwardRequest], width: int) -> Tensor:
    """Return (B, n, m) bool; padding attends to one key, so that no softmax is empty."""
    if len(readings) == 1:
        return readings[0].seen[None]
    span = max(reading.seen.shape[1] for reading in readings)
    joined = torch.zeros(len(readings), width, span, dtype=torch.bool)
    for row, reading in enumerate(readings):
        count, visible = reading.seen.shape
        joined[row, :count, :visible] = reading.seen
        if count < width:
            joined[row, count:, 0] = True
    return joined


_ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")


def build_attention_mask(
    attention: AttentionKind, block_size: int | None, queries: Tensor, keys: Tensor
) -> Tensor:
    """Return the attention mask of queries over keys, (n, m) bool.

    Args:
        attention: full, block_causal or causal.
        block_size: Block size of block_causal; blocks are counted from position 0.
        queries: Positions, (n,), int64.
        keys: Positions, (m,), int64.
    """
    if attention == "full":
        return queries.new_ones(len(queries), len(keys), dtype=torch.bool)
    if attention == "block_causal":
        size = block_size or 1
        queries, keys = queries // size, keys // size
    return queries[:, None] >= keys[None, :]


def build_block_diff_mask(length: int, block_size: int) -> Tensor:
    """Return the mask of one pass over a noisy and a clean copy of a text, (2T, 2T) bool.

    Rows and columns are the T noisy tokens, then the T clean ones. Noisy tokens attend to the noisy
    tokens of their block and the clean tokens of the blocks before; clean tokens to the clean
    tokens of their block and those before.

    Source: Arriola et al. 2025, arXiv:2503.09573, section 3.1 and figure 4.
    """
    block = torch.arange(length) // block_size
    same_block, before = block[:, None] == block[None, :], block[:, None] > block[None, :]
    top = torch.cat([same_block, before], 1)  # (T, 2T)
    bottom = torch.cat([torch.zeros_like(same_block), same_block | before], 1)
    return torch.cat([top, bottom])


def format_mask(network: Any, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask in the format of a network's attention function, (B, 1, n, m).

    Args:
        network: Transformers model.
        mask: Attention mask, (B, n, m) bool; every row has at least one True.
        dtype: Dtype of the states.

    Raises:
        CheckpointError: If the mask format of the attention function is unknown.
    """
    name = str(getattr(network.config, "_attn_implementation", ""))
    if name == "sdpa":
        return mask[:, None]
    if name == "eager":
        least = torch.finfo(dtype).min
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, least)[
            :, None
        ]
    raise CheckpointError(
        f"attention implementation '{name}' has no known format of explicit masks",
        code="diffusion.attention",
        expected=f"one of: {', '.join(_ATTENTION_IMPLEMENTATIONS)}",
        next="load the model with attn_implementation sdpa",
    )


_BODIES = frozenset({"LlamaModel", "Qwen2Model", "Qwen3Model"})
_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # independent of the length


@dataclass(frozen=True, slots=True)
class FastLlamaBody:
    """Fused forward pass of a Llama-like body.

    Args:
        body: Body of the library's model, whose weights are used.
        heads: Query heads.
        key_heads: Key and value heads; a divisor of ``heads``.
        width: Head dimension.
    """

    body: Any
    heads: int
    key_heads: int
    width: int

    @classmethod
    def from_body(cls, body: Any) -> FastLlamaBody | None:
        """Return the fast path of a body, or None where equality with the library is unknown."""
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
        visible: Tensor,
        want: Tensor,
        keys: SlotKVCache | None,
        slots: Tensor | None,
    ) -> Tensor:
        """Return the requested states of one sequence, (k, D).

        Args:
            ids: Input tokens, (n,).
            positions: Position of each, (n,).
            visible: Attention mask, (n, m) bool.
            want: Indices into ``ids``, (k,).
            keys: KV cache; None for none, then m = n.
            slots: Slots of the input tokens, (n,).
        """
        body = self.body
        x = body.embed_tokens(ids)  # (n, D)
        cos, sin = body.rotary_emb(x[None], positions[None])
        half = self.width // 2
        # rotating halves is a roll by half, with the sine of the first half negated
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)[:, None]  # (n, 1, d)
        rotary = cos[0][:, None], sin
        is_all = len(want) == len(ids)
        last = len(body.layers) - 1
        mask = None if bool(visible.all()) else visible
        slot_index = None if slots is None else slots_as_slice(slots)
        for number, layer in enumerate(body.layers):
            rows = want if number == last and not is_all else None
            x = self._layer(
                layer, number, x, rotary, mask, (keys, slot_index, visible.shape[1]), rows
            )
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
        cache: tuple[SlotKVCache | None, slice | Tensor | None, int],
        rows: Tensor | None,
    ) -> Tensor:
        """Return a layer's states, (n, D); with ``rows`` those of these tokens only, (k, D)."""
        attention, heads = layer.self_attn, self.heads
        h = _norm(layer.input_layernorm, x)
        k = _linear(attention.k_proj, h).view(-1, self.key_heads, self.width)
        v = _linear(attention.v_proj, h).view(-1, self.key_heads, self.width)
        k = _rotate(_head_norm(attention, "k_norm", k), rotary)
        if rows is not None:
            x, h = x[rows], h[rows]
            rotary = rotary[0][rows], rotary[1][rows]
            mask = None if mask is None else mask[rows]
        q = _linear(attention.q_proj, h).view(-1, heads, self.width)
        q = _rotate(_head_norm(attention, "q_norm", q), rotary)
        attended = self._attend(
            q, *_store_keys_values(k.transpose(0, 1), v.transpose(0, 1), number, cache), mask
        )
        x = x + _linear(attention.o_proj, attended)
        h = _norm(layer.post_attention_layernorm, x)
        inner = functional.silu(_linear(layer.mlp.gate_proj, h)) * _linear(layer.mlp.up_proj, h)
        return x + _linear(layer.mlp.down_proj, inner)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return attention of queries (n, H, d) over keys and values (1, h, m, d), (n, H d)."""
        count, group = len(q), self.heads // self.key_heads
        # grouped queries are adjacent, so that keys are not repeated: (1, h, g n, d)
        q = q.view(count, self.key_heads, group, self.width).permute(1, 2, 0, 3)
        q = q.reshape(1, self.key_heads, group * count, self.width)
        if mask is not None and group > 1:
            mask = mask.repeat(group, 1)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = attended.view(self.key_heads, group, count, self.width).permute(2, 0, 1, 3)
        return attended.reshape(count, self.heads * self.width)


def _store_keys_values(
    k: Tensor, v: Tensor, number: int, cache: tuple[SlotKVCache | None, slice | Tensor | None, int]
) -> tuple[Tensor, Tensor]:
    """Write a layer's keys and values (h, n, d) to their slots; return all visible ones."""
    space, index, end = cache
    if space is None or index is None:
        return k[None], v[None]
    keys, values = space.ensure(number, k[None])
    keys[0, :, index] = k
    values[0, :, index] = v
    return keys[:, :, :end], values[:, :, :end]


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary position embeddings to heads, (n, H, d)."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _norm(module: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        normalized: Tensor = module(x)  # the library's norm computes in float32
        return normalized
    shape = module.weight.shape
    scaled: Tensor = functional.rms_norm(x, shape, None, module.variance_epsilon) * module.weight
    return scaled


def _head_norm(attention: Any, name: str, x: Tensor) -> Tensor:
    module = getattr(attention, name, None)
    return x if module is None else _norm(module, x)


def _linear(module: Any, x: Tensor) -> Tensor:
    return functional.linear(x, module.weight, module.bias)


def _is_plain(layer: Any) -> bool:
    """Return whether a layer is supported: stock linear layers and SiLU, no adapters or hooks."""
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
