"""Base classes of KV caches for block-wise decoding.

A ``CacheSession`` belongs to one text (guidance has two). It answers one question: the states
behind the logits of some places, as the text stands now. Which tokens it reads for that, and what
it takes from earlier calls, is the cache's business.
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
    """What a step wants to know of a text.

    Args:
        ids: The text as it stands, (T,).
        start: The block's first place.
        stop: The place after its last.
        places: Places whose logits are wanted, (k,), rising, within the block.
        is_open: Which places are open, (T,), bool.
        shadows: Places beside which a mask shall stand that does not see them, (m,), rising.
        mask: The mask token.
        step: Of the block, from 0.
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
    """What of earlier calls is used again."""

    attentions: ClassVar[tuple[AttentionKind, ...]] = ("full", "block_causal", "causal")
    """The attentions that it can be used with."""
    is_exact: ClassVar[bool] = True
    """Whether it changes nothing but the time."""

    @abstractmethod
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        """Begin a text of at most ``capacity`` places, shadows included."""


class CacheSession:
    """Reads one text, step after step."""

    def __init__(self, model: DiffusionModel) -> None:
        """Stand before the first step."""
        self.model = model
        self.shift = int(model.metadata.logit_shift)

    @property
    def drift(self) -> float | None:
        """How far what was kept had moved when it was read again; None where nothing is stale."""
        return None

    def read(self, ask: CacheQuery) -> Reads:
        """Yield readings; return the states behind the logits of places and shadows, (k + m, D).

        Each reading is answered with its wanted states. Shadows come after the places.
        """
        raise TypeError(f"{type(self).__name__} does not say what it reads")

    def visible(self, ask: CacheQuery) -> int:
        """Return how many places from the start the block can see."""
        return len(ask.ids) if self.model.metadata.attention == "full" else ask.stop

    def reading(
        self, ask: CacheQuery, chosen: Tensor, visible: int, *, want: Tensor
    ) -> ForwardRequest:
        """Return a reading of some places, shadows behind them, without keys.

        Args:
            ask: The question.
            chosen: Places that are read, (n,), rising.
            visible: Places from 0 that can be seen.
            want: Indices of ``chosen`` whose states are wanted, (k,); shadows are added.
        """
        import torch

        from stillroom.diffusion.model.network import ForwardRequest

        at = torch.arange(visible)
        seen = self.model.sees(chosen, at)
        count = len(ask.shadows)
        if not count:
            return ForwardRequest(ask.ids[chosen], chosen, seen, want)
        own = torch.cat([seen, torch.zeros(len(chosen), count, dtype=torch.bool)], 1)
        beside = self.model.sees(ask.shadows, at) & (ask.shadows[:, None] != at[None])
        beside = torch.cat([beside, torch.eye(count, dtype=torch.bool)], 1)
        return ForwardRequest(
            torch.cat([ask.ids[chosen], torch.full((count,), ask.mask)]),
            torch.cat([chosen, ask.shadows]),
            torch.cat([own, beside]),
            torch.cat([want, len(chosen) + torch.arange(count)]),
        )


KV_CACHES = Registry("stillroom.diffusion.sampling.kv_caches", KVCacheMethod)
