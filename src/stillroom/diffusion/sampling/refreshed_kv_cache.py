"""Refreshed KV cache (Fast-dLLM prefix and dual cache, dKV-Cache): stale keys and values.

With bidirectional attention the keys and values of every token depend on the whole text, so none is
final. These caches recompute the whole text from time to time: at the start of a block
(semi-autoregressive decoding; ``DecodeSettings.block_length``) and every ``refresh`` steps; in
between a method of ``kv_caches`` chooses the positions to recompute, and the other entries are
stale. Refreshed in every step, they are exact. Drift is measured whenever a position is recomputed:
one minus the cosine of its old and new values, over all layers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheQuery, CacheSession, KVCacheMethod

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import Reads

__all__ = ["RefreshedCacheSession", "RefreshedKVCache"]


class RefreshedKVCache(KVCacheMethod):
    """Recompute the whole text from time to time, and chosen positions in between."""

    is_exact: ClassVar[bool] = False
    per_block: ClassVar[bool] = True
    """Whether each block starts with a recomputation of the whole text."""

    refresh: int | None = Field(
        default=None,
        ge=1,
        description="steps between recomputations of the whole text; null: once per block; 1 is "
        "exact",
    )

    @abstractmethod
    def choose(self, model: DiffusionModel, ask: CacheQuery, last: Tensor) -> Tensor:
        """Return the positions to recompute in a step, (n,), ascending.

        ``last`` are the token ids at their last computation, (T,).
        """

    @override
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        return RefreshedCacheSession(self, model, capacity)


class RefreshedCacheSession(CacheSession):
    """Recomputes all positions at block starts and refreshes, and chosen ones in between."""

    def __init__(self, method: RefreshedKVCache, model: DiffusionModel, capacity: int) -> None:
        """Open a session for one text of at most ``capacity`` positions, shadows included."""
        import torch

        from stillroom.models.local.attention import SlotKVCache

        super().__init__(model)
        self.keys = SlotKVCache(capacity)
        self._method = method
        self._states = torch.zeros(0, 0)
        self._steps_since_refresh = 0
        self._block = -1
        self._moved, self._compared = 0.0, 0
        self.last = torch.zeros(0, dtype=torch.long)
        """Token ids at their last computation, (T,); -1 where there was none."""
        self.ages = torch.zeros(0, dtype=torch.long)
        """Steps since each position was computed, (T,)."""
        self.known = torch.zeros(0, dtype=torch.bool)
        """Which positions were computed at least once, (T,)."""

    @property
    @override
    def drift(self) -> float | None:
        """Mean drift of stale positions when recomputed, 0 to 2; None before the first."""
        return self._moved / self._compared if self._compared else None

    @override
    def read(self, ask: CacheQuery) -> Reads:
        import torch

        visible = self.visible(ask)
        is_due = self._is_refresh_due(ask)
        positions = (
            torch.arange(visible) if is_due else self._method.choose(self.model, ask, self.last)
        )
        is_compared = is_due and bool(self.known.any())
        before = self._values(positions) if is_compared else None
        reading = self.request(ask, positions, visible, want=torch.arange(len(positions)))
        reading.keys = self.keys
        reading.slots = torch.cat([positions, visible + torch.arange(len(ask.shadows))])
        states = yield reading
        computed, shadows = states[: len(positions)], states[len(positions) :]
        if len(self._states) != len(ask.ids):
            self._states = computed.new_zeros(len(ask.ids), computed.shape[-1])
        self._states[positions.to(computed.device)] = computed
        self.last[positions] = ask.ids[positions]
        if before is not None:
            self._compare(positions, _cosine_distance(before, self._values(positions)))
        self.ages += 1
        self.ages[positions] = 0
        self.known[positions] = True
        # with shifted logits the state before a recomputed position is the cached one
        needed = (ask.places - self.shift).to(computed.device)
        return torch.cat([self._states[needed], shadows])

    def _values(self, positions: Tensor) -> Tensor:
        """Return the values of positions in every layer, (L, n, H d)."""
        import torch

        layers = [
            values[0][:, positions].transpose(0, 1).flatten(1) for _, values in self.keys.layers
        ]
        return torch.stack(layers)

    def _compare(self, positions: Tensor, distance: Tensor) -> None:
        """Accumulate the drift of positions, (n,), that were stale."""
        is_stale = (self.ages[positions] > 0) & self.known[positions]
        self._moved += float(distance[is_stale].sum())
        self._compared += int(is_stale.sum())

    def _is_refresh_due(self, ask: CacheQuery) -> bool:
        """Return whether the whole text is recomputed in this step; start anew for a new length."""
        import torch

        is_new = len(self.last) != len(ask.ids)
        if is_new:
            self.last = torch.full_like(ask.ids, -1)
            self.ages = torch.zeros(len(ask.ids), dtype=torch.long)
            self.known = torch.zeros(len(ask.ids), dtype=torch.bool)
        is_new_block = self._method.per_block and ask.start != self._block
        self._block = ask.start
        self._steps_since_refresh += 1
        refresh = self._method.refresh
        is_due = is_new or is_new_block or (refresh or math.inf) <= self._steps_since_refresh
        if is_due:
            self._steps_since_refresh = 0
        return is_due


def _cosine_distance(before: Tensor, after: Tensor) -> Tensor:
    """Return one minus the cosine of values, the mean over layers, (n,), on the CPU."""
    import torch

    cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return (1 - cosine).mean(0).cpu()
