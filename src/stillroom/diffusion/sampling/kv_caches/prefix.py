"""KV cache of the prefix of the block; the block and the suffix are recomputed.

Source: Wu et al. 2025, arXiv:2505.22618 (Fast-dLLM), section 3.2. Approximate with bidirectional
attention, exact with refresh 1. Chooses the positions; ``refreshed_kv_cache`` fills and reads the
cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.sampling.refreshed_kv_cache import RefreshedKVCache

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery

__all__ = ["Prefix"]


class Prefix(RefreshedKVCache):
    """Cache the positions before the block at its start."""

    paper: ClassVar[str] = "arXiv:2505.22618"

    @override
    def choose(self, model: DiffusionModel, ask: CacheQuery, last: Tensor) -> Tensor:
        import torch

        stop = len(ask.ids) if model.metadata.attention == "full" else ask.stop
        return torch.arange(ask.start, stop)
