"""Base classes of KV caches for block-wise decoding; they read shifted logits (``logit_shift``).

A ``CacheSession`` belongs to one sequence (two with guidance). A query asks for the states that
predict the tokens at some positions, given the current text; which tokens are recomputed, and what
comes from earlier passes, is up to the cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.metadata import AttentionKind
    from stillroom.diffusion.model.network import DiffusionModel, ForwardRequest

    Reads = Generator[ForwardRequest, Tensor, Tensor]

__all__ = ["KV_CACHES", "CacheQuery", "CacheSession", "KVCacheMethod"]


@dataclass(frozen=True, slots=True)
class CacheQuery:
    """Query of one decoding step.

    Args:
        ids: Current token ids, (T,).
        start: First position of the block.
        stop: Last position of the block + 1.
        places: Positions whose logits are needed, (k,), ascending, within the block.
        is_open: Masked positions, (T,), bool.
        shadows: Positions that get an extra mask token which does not attend to them, (m,),
            ascending.
        mask: Mask token id.
        step: Step within the block, from 0.
    """

    ids: Tensor
    start: int
    stop: int
    places: Tensor
    is_open: Tensor
    shadows: Tensor
    mask: int
    step: int


class KVCacheMethod(Method):
    """KV cache of sampling."""

    attentions: ClassVar[tuple[AttentionKind, ...]] = ("full", "block_causal", "causal")
    """Attention kinds it supports."""
    is_exact: ClassVar[bool] = True
    """Whether results equal those without a cache."""

    @abstractmethod
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        """Open a session for a text of at most ``capacity`` positions, shadows included."""


class CacheSession:
    """Cache of one sequence over its decoding steps."""

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model
        self.shift = int(model.metadata.logit_shift)

    @property
    def drift(self) -> float | None:
        """Mean drift of cached values when recomputed; None if the cache is exact."""
        return None

    def read(self, ask: CacheQuery) -> Reads:
        """Yield forward requests; return the states for places and shadows, (k + m, D).

        The states of each request are sent back. Shadows come after the places.
        """
        raise TypeError(f"{type(self).__name__} does not implement read")

    def visible(self, ask: CacheQuery) -> int:
        """Return the number of positions from the start that the block attends to."""
        return len(ask.ids) if self.model.metadata.attention == "full" else ask.stop

    def request(
        self, ask: CacheQuery, positions: Tensor, visible: int, *, want: Tensor
    ) -> ForwardRequest:
        """Return a forward request for some positions and all shadows, without a cache.

        Args:
            ask: Query of the step.
            positions: Input positions, (n,), ascending.
            visible: Number of visible positions from 0.
            want: Indices into ``positions`` whose states are needed, (k,); shadows are added.
        """
        import torch

        from stillroom.diffusion.model.network import ForwardRequest

        visible_positions = torch.arange(visible)
        mask = self.model.attention_mask(positions, visible_positions)
        count = len(ask.shadows)
        if not count:
            return ForwardRequest(ask.ids[positions], positions, mask, want)
        token_rows = torch.cat([mask, torch.zeros(len(positions), count, dtype=torch.bool)], 1)
        shadow_rows = self.model.attention_mask(ask.shadows, visible_positions) & (
            ask.shadows[:, None] != visible_positions[None]
        )
        shadow_rows = torch.cat([shadow_rows, torch.eye(count, dtype=torch.bool)], 1)
        return ForwardRequest(
            torch.cat([ask.ids[positions], torch.full((count,), ask.mask)]),
            torch.cat([positions, ask.shadows]),
            torch.cat([token_rows, shadow_rows]),
            torch.cat([want, len(positions) + torch.arange(count)]),
        )


KV_CACHES = Registry("stillroom.diffusion.sampling.kv_caches", KVCacheMethod)
