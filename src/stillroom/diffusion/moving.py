"""What the adaptive cache reads: places by how far their values are expected to have moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from stillroom.diffusion.stale import StaleSession

if TYPE_CHECKING:
    from stillroom.diffusion.caching import Ask
    from stillroom.diffusion.model import DiffusionModel

__all__ = ["MovingSession"]

_FIRST_RATE = 1.0  # a place that was never read twice is taken to move at once


class MovingSession(StaleSession):
    """Reads a share of the kept places in every step, and all where they have moved too far."""

    def __init__(
        self,
        model: DiffusionModel,
        capacity: int,
        *,
        share: float,
        most_drift: float,
        refresh: int | None,
    ) -> None:
        """Begin a text; arguments as ``caches.adaptive`` describes them."""
        super().__init__(model, capacity, self._choose_moved, refresh=refresh)
        self._share, self._most = share, most_drift
        self._rates = torch.zeros(0)
        self._has_moved = False

    @override
    def _values_before(self, chosen: Tensor, *, is_due: bool) -> Tensor | None:
        return self._values(chosen) if bool(self.known.any()) else None

    @override
    def _compare(self, chosen: Tensor, distance: Tensor) -> None:
        super()._compare(chosen, distance)
        ages, known = self.ages[chosen], self.known[chosen]
        self._rates[chosen[known]] = (distance / (ages + 1))[known]
        stale = distance[known & (ages > 0)]
        self._has_moved = len(stale) > 0 and float(stale.mean()) > self._most

    @override
    def _is_due(self, ask: Ask) -> bool:
        is_due = super()._is_due(ask)
        if len(self._rates) != len(ask.ids):
            self._rates = torch.full((len(ask.ids),), _FIRST_RATE)
        if self._has_moved and not is_due:
            self._age, is_due = 0, True
        self._has_moved = False
        return is_due

    def _choose_moved(self, ask: Ask, last: Tensor) -> Tensor:
        stop = len(ask.ids) if self.model.metadata.attention == "full" else ask.stop
        is_read = (ask.ids != last)[:stop]
        is_read[ask.places - self.shift] = True
        kept = (~is_read).nonzero()[:, 0]
        count = round(self._share * len(kept))
        if count:
            expected = self._rates[kept] * (self.ages[kept] + 1)
            is_read[kept[expected.topk(count).indices]] = True
        return is_read.nonzero()[:, 0]
