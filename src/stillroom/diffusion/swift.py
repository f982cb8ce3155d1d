"""A body of the Llama family read by its weights alone, for the small calls that decoding makes.

A step of decoding reads a few dozen tokens, and there the work of a library's own modules (norms in
five operations, rotary embeddings in six, calls around calls) is as much as the products of
matrices. Here each layer is the same mathematics in few operations: fused norms, keys and values
written straight into their slots, no mask where everything is seen, and the last layer finished for
the wanted tokens alone. What is not known for certain is left to the library: then ``of`` returns
None. Agrees with the library up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.models.key_space import KeySpace

__all__ = ["SwiftBody"]

_BODIES = frozenset({"LlamaModel", "Qwen2Model", "Qwen3Model"})
_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # those that do not hang on the length


@dataclass(frozen=True, slots=True)
class SwiftBody:
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
    def of(cls, body: Any) -> SwiftBody | None:
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
        keys: KeySpace | None,
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
        at = None if slots is None else _run_of(slots)
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
        kept: tuple[KeySpace | None, slice | Tensor | None, int],
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
        found = self._attend(q, *_keep(k.transpose(0, 1), v.transpose(0, 1), number, kept), mask)
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


def _keep(
    k: Tensor, v: Tensor, number: int, kept: tuple[KeySpace | None, slice | Tensor | None, int]
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


def _run_of(slots: Tensor) -> slice | Tensor:
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
