"""Adaptive KV cache: recomputes the positions whose values drift most.

Source: Liu et al. 2025, arXiv:2506.06295 (dLLM-Cache). Differs from the paper: there the values of
all tokens are computed in every step to find those that drifted; here the drift of a position is
extrapolated from its last measured drift per step, so that cached positions cost nothing and any
network is supported. Exact with refresh 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.sampling.kv_cache import CacheSession, KVCacheMethod

if TYPE_CHECKING:
    from stillroom.diffusion.model.network import DiffusionModel

__all__ = ["Adaptive"]


class Adaptive(KVCacheMethod):
    """Recompute masked positions of the block, changed tokens, and those of the largest drift."""

    paper: ClassVar[str] = "arXiv:2506.06295"
    is_exact: ClassVar[bool] = False

    share: float = Field(
        default=0.25, ge=0, le=1, description="share of the cached positions to recompute per step"
    )
    most_drift: float = Field(
        default=0.05,
        gt=0,
        le=2,
        description="one minus the cosine of values: above this mean drift of the recomputed "
        "positions the whole text is recomputed in the next step",
    )
    refresh: int | None = Field(
        default=16,
        ge=1,
        description="steps between recomputations of the whole text; null: once per block; 1 is "
        "exact",
    )

    @override
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        from stillroom.diffusion.sampling.approximate_cache import DriftCacheSession

        return DriftCacheSession(
            model, capacity, share=self.share, most_drift=self.most_drift, refresh=self.refresh
        )
