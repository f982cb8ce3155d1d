"""Adaptive KV cache: recomputes the positions whose values drift most.

Source: Liu et al. 2025, arXiv:2506.06295 (dLLM-Cache). Differs from the paper: there the values of
all tokens are computed in every step to see which have moved; here a place is expected to move by
what its values moved when they were last read, times the steps since, so that nothing is computed
for places that are kept and any network can be read. Exact with refresh 1.
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
    """Open places of the block, those that have just changed, and a share of the most moved."""

    paper: ClassVar[str] = "arXiv:2506.06295"
    is_exact: ClassVar[bool] = False

    share: float = Field(
        default=0.25, ge=0, le=1, description="share of the kept places that is read in every step"
    )
    most_drift: float = Field(
        default=0.05,
        gt=0,
        le=2,
        description="one less the cosine of values: where those read again have moved further, the "
        "whole text is read in the next step",
    )
    refresh: int | None = Field(
        default=16,
        ge=1,
        description="steps from one reading of the whole text to the next; null is once a block; "
        "1 is exact",
    )

    @override
    def open(self, model: DiffusionModel, capacity: int) -> CacheSession:
        from stillroom.diffusion.sampling.approximate_cache import DriftCacheSession

        return DriftCacheSession(
            model, capacity, share=self.share, most_drift=self.most_drift, refresh=self.refresh
        )
