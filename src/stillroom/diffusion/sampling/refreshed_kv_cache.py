"""Base class of KV caches that recompute the whole text from time to time."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheQuery, CacheSession, KVCacheMethod

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel

__all__ = ["RefreshedKVCache"]


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
        from stillroom.diffusion.sampling.approximate_cache import ApproximateCacheSession

        choose = partial(self.choose, model)
        return ApproximateCacheSession(
            model, capacity, choose, refresh=self.refresh, per_block=self.per_block
        )
