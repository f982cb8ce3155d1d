"""Which position sees which, as explicit masks: no model is ever left to its causal default.

A mask given to a transformers model must have four dimensions and the form that its attention
function reads: booleans for sdpa, numbers to add for eager. A missing or two-dimensional one falls
back to causal attention without a word, and booleans added as numbers mask nothing at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.metadata import AttentionKind
from stillroom.errors import CheckpointError

__all__ = ["IMPLEMENTATIONS", "mask_for", "sees", "training_mask"]

IMPLEMENTATIONS = ("sdpa", "eager")


def sees(attention: AttentionKind, block_size: int | None, queries: Tensor, keys: Tensor) -> Tensor:
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


def training_mask(length: int, block_size: int, *, device: torch.device | None = None) -> Tensor:
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


def mask_for(network: Any, seen: Tensor, dtype: torch.dtype) -> Tensor:
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
        expected=f"one of: {', '.join(IMPLEMENTATIONS)}",
        next="load the model with attn_implementation sdpa",
    )
