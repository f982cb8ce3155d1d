"""No cache: the whole visible text is recomputed in every step.

Source: none; the baseline of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheSession, KVCacheMethod

if TYPE_CHECKING:
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery, Reads

__all__ = ["Whole"]


class _Session(CacheSession):
    @override
    def read(self, ask: CacheQuery) -> Reads:
        import torch

        visible = self.visible(ask)
        positions = torch.arange(visible)
        states = yield self.request(ask, positions, visible, want=ask.places - self.shift)
        return states


class Whole(KVCacheMethod):
    """Recompute everything in every step."""

    paper: ClassVar[str] = "none"

    @override
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        return _Session(model)
