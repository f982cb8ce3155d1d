"""KV cache of decoded tokens, filled one step after decoding; masked positions stay uncached.

Source: Ma et al. 2025, arXiv:2505.15781 (dKV-Cache): a token's values change most in the step that
unmasks it, so it is recomputed once more before it is cached. Exact with refresh 1.
Chooses the positions; ``refreshed_kv_cache`` fills and reads the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.sampling.refreshed_kv_cache import RefreshedKVCache

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.kv_cache import CacheQuery

__all__ = ["Delayed"]


class Delayed(RefreshedKVCache):
    """Recompute masked positions and tokens that have just changed."""

    paper: ClassVar[str] = "arXiv:2505.15781"
    per_block: ClassVar[bool] = False

    refresh: int | None = Field(
        default=8,
        ge=1,
        description="steps between recomputations of the whole text; null: never; 1 is exact",
    )

    @override
    def choose(self, model: DiffusionModel, ask: CacheQuery, last: Tensor) -> Tensor:
        import torch

        stop = len(ask.ids) if model.metadata.attention == "full" else ask.stop
        is_read = (ask.is_open | (ask.ids != last))[:stop]
        is_read[ask.places - int(model.metadata.logit_shift)] = True
        return torch.arange(stop)[is_read]
