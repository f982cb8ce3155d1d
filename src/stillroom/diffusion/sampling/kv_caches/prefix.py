"""KV cache of the prefix of the block; the block and the suffix are recomputed.

Source: Wu et al. 2025, arXiv:2505.22618 (Fast-dLLM), section 3.2. Approximate with bidirectional
attention, exact with refresh 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheSession, KVCacheMethod

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery

__all__ = ["Prefix"]


class Prefix(KVCacheMethod):
    """Cache the positions before the block at its start."""

    paper: ClassVar[str] = "arXiv:2505.22618"
    is_exact: ClassVar[bool] = False

    refresh: int | None = Field(
        default=None,
        ge=1,
        description="steps between recomputations of the whole text; null: once per block; 1 is "
        "exact",
    )

    @override
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        import torch

        from stillroom.diffusion.sampling.approximate_cache import ApproximateCacheSession

        def choose(ask: CacheQuery, last: Tensor) -> Tensor:
            stop = len(ask.ids) if model.metadata.attention == "full" else ask.stop
            return torch.arange(ask.start, stop)

        return ApproximateCacheSession(model, capacity, choose, refresh=self.refresh)
