"""Cache sessions that reuse stale keys and values of models with bidirectional attention.

With bidirectional attention the keys and values of every token depend on the whole text, so none is
final. These sessions recompute the whole text from time to time, and a part of it in between; the
other entries are stale. Refreshed in every step, they are exact. Drift is measured whenever a
position is recomputed: one minus the cosine of its old and new values, over all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheSession
from stillroom.models.local.attention import SlotKVCache

if TYPE_CHECKING:
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery, Reads

__all__ = ["ApproximateCacheSession"]


class ApproximateCacheSession(CacheSession):
    """Recomputes all positions at block starts and refreshes, and selected ones in between."""

    def __init__(
        self,
        model: DiffusionModel,
        capacity: int,
        choose: Callable[[CacheQuery, Tensor], Tensor],
        *,
        refresh: int | None,
        per_block: bool = True,
    ) -> None:
        """Open a session for one text.

        Args:
            model: Diffusion model.
            capacity: Maximum positions, shadows included.
            choose: Returns the positions to recompute between refreshes, (n,), ascending, given the
                query and the token ids at their last computation, (T,).
            refresh: Steps between full recomputations; None for none within a block.
            per_block: Whether each block starts with a full recomputation.
        """
        super().__init__(model)
        self.keys = SlotKVCache(capacity)
        self._choose, self._refresh, self._per_block = choose, refresh, per_block
        self._last: Tensor | None = None
        self._age = 0
        self._states: Tensor | None = None
        self._block = -1
        self._moved, self._compared = 0.0, 0
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
        visible = self.visible(ask)
        is_due = self._is_due(ask)
        positions = torch.arange(visible) if is_due else self._choose(ask, self._known(ask))
        needed = ask.places - self.shift
        is_compared = is_due and bool(self.known.any())
        before = self._values(positions) if is_compared else None
        reading = self.request(ask, positions, visible, want=torch.arange(len(positions)))
        reading.keys = self.keys
        reading.slots = torch.cat([positions, visible + torch.arange(len(ask.shadows))])
        states = yield reading
        computed, shadows = states[: len(positions)], states[len(positions) :]
        self._keep(ask, positions, computed)
        if before is not None:
            self._compare(positions, _cosine_distance(before, self._values(positions)))
        self.ages += 1
        self.ages[positions] = 0
        self.known[positions] = True
        if self._states is None:
            raise ValueError("nothing was read")
        # the state before a recomputed position is the cached one
        return torch.cat([self._states[needed.to(computed.device)], shadows])

    def _values(self, positions: Tensor) -> Tensor:
        """Return the values of positions in every layer, (L, n, H d)."""
        layers = [
            values[0][:, positions].transpose(0, 1).flatten(1) for _, values in self.keys.layers
        ]
        return torch.stack(layers)

    def _compare(self, positions: Tensor, distance: Tensor) -> None:
        """Accumulate the drift of positions, (n,), that were stale."""
        is_stale = (self.ages[positions] > 0) & self.known[positions]
        self._moved += float(distance[is_stale].sum())
        self._compared += int(is_stale.sum())

    def _is_due(self, ask: CacheQuery) -> bool:
        is_new = self._last is None or len(self._last) != len(ask.ids)
        begins = self._per_block and ask.start != self._block
        self._block = ask.start
        self._age += 1
        if is_new:
            self._last = None
            self.ages = torch.zeros(len(ask.ids), dtype=torch.long)
            self.known = torch.zeros(len(ask.ids), dtype=torch.bool)
        if is_new or begins or (self._refresh is not None and self._age >= self._refresh):
            self._age = 0
            return True
        return False

    def _known(self, ask: CacheQuery) -> Tensor:
        if self._last is None:
            raise ValueError("nothing was read")
        return self._last

    def _keep(self, ask: CacheQuery, positions: Tensor, states: Tensor) -> None:
        """Store the token ids and states of recomputed positions."""
        if self._last is None:
            self._last = torch.full_like(ask.ids, -1)
            self._states = states.new_zeros(len(ask.ids), states.shape[-1])
        self._last[positions] = ask.ids[positions]
        if self._states is not None:
            self._states[positions.to(states.device)] = states


def _cosine_distance(before: Tensor, after: Tensor) -> Tensor:
    """Return one minus the cosine of values, the mean over layers, (n,), on the CPU."""
    cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return (1 - cosine).mean(0).cpu()
