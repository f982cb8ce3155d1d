"""KV cache of finished blocks: exact where attention is block-causal.

Source: Arriola et al. 2025, arXiv:2503.09573, section 3.2. Positions before the block do not attend
to it, so their keys and values are final.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheSession, KVCacheMethod

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.metadata import AttentionKind
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery, Reads

__all__ = ["Block"]


class _Session(CacheSession):
    def __init__(self, model: DiffusionModel, capacity: int) -> None:
        from stillroom.models.local.attention import SlotKVCache

        super().__init__(model)
        self.keys = SlotKVCache(capacity)
        self.read_to = 0
        self.edge: Tensor | None = None

    @override
    def read(self, ask: CacheQuery) -> Reads:
        import torch

        if self.read_to < ask.start:
            before = torch.arange(self.read_to, ask.start)
            last = torch.tensor([len(before) - 1])
            bare = replace(ask, shadows=ask.shadows[:0])
            clean = self.request(bare, before, ask.start, want=last)
            clean.keys, clean.slots = self.keys, before
            self.edge = yield clean
            self.read_to = ask.start
        positions = torch.arange(ask.start, ask.stop)
        # with shifted logits the block's first token is predicted by the last state before the
        # block
        from_edge = self.shift and len(ask.places) > 0 and int(ask.places[0]) == ask.start
        targets = ask.places[1:] if from_edge else ask.places
        reading = self.request(ask, positions, ask.stop, want=targets - self.shift - ask.start)
        reading.keys = self.keys
        reading.slots = torch.arange(ask.start, ask.stop + len(ask.shadows))
        states = yield reading
        if not from_edge or self.edge is None:
            return states
        return torch.cat([self.edge, states])


class Block(KVCacheMethod):
    """Cache the keys and values of finished blocks."""

    paper: ClassVar[str] = "arXiv:2503.09573"
    attentions: ClassVar[tuple[AttentionKind, ...]] = ("block_causal", "causal")

    @override
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        return _Session(model, capacity)
