"""KV cache of the prefix and the suffix of the block that is decoded.

Source: Wu et al. 2025, arXiv:2505.22618 (Fast-dLLM), section 3.2 (DualCache). The fastest and the
least accurate; exact with refresh 1. Everything outside the block (``block_length``) is stale until
the next block: see ``refreshed_kv_cache``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.sampling.refreshed_kv_cache import RefreshedKVCache

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery

__all__ = ["Dual"]


class Dual(RefreshedKVCache):
    """Recompute the block only."""

    paper: ClassVar[str] = "arXiv:2505.22618"

    @override
    def choose(self, model: DiffusionModel, ask: CacheQuery, last: Tensor) -> Tensor:
        import torch

        return torch.arange(ask.start, ask.stop)
