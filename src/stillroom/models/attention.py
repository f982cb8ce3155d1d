"""What attention is computed from: queries and keys as the attention function gets them.

They are taken where a transformers model hands them to its attention function, after rotary
embeddings and any norm of queries and keys, so that nothing need be known of a family and the fast
kernels stay in use. Nothing is copied; no matrix of scores is formed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["AttentionCall", "watch_attention"]


@dataclass(frozen=True, slots=True)
class AttentionCall:
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
def watch_attention(model: nn.Module) -> Iterator[dict[int, AttentionCall]]:
    """Within the body, collect each layer's call of attention by its number, from 0.

    Args:
        model: A transformers model, whole or its body. Layers of a model that does not go through
            the library's table of attention functions stay out of what is collected.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    found: dict[int, AttentionCall] = {}
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
            found[int(number)] = AttentionCall(
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
