"""Breadcrumbs: leave out the largest and the smallest changes, add up the rest.

Source: Davari and Belilovsky 2023, arXiv:2312.06795: each tensor of a task vector loses its
outliers and its small elements. Differs: ``density`` is the share kept and ``gamma`` the
share of outliers dropped above it; of equal magnitudes the first element counts as the larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, Blocks, MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["Breadcrumbs"]


class Breadcrumbs(MergeMethod):
    """Task arithmetic on the middle of every task vector, tensor by tensor."""

    paper: ClassVar[str] = "arXiv:2312.06795"
    needs_base: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("density", "gamma")
    replicates: ClassVar[bool] = True

    density: float = Field(0.15, ge=0, le=1, description="share of each task vector kept")
    gamma: float = Field(0.01, ge=0, le=1, description="share of the largest that is dropped")
    scale: float = Field(1.0, description="multiplier of the sum of task vectors (lambda)")
    rescale: bool = Field(
        False, description="multiply what is kept so that each tensor keeps its L1 norm"
    )
    normalize: bool = Field(False, description="divide the sum by that of the weights")

    @override
    def measure(self, blocks: Blocks) -> tuple[list[Any], list[float]]:
        """Return two cuts a model, above the small and above the outliers, and a factor each."""
        from stillroom.merge.trim import find_bands, keep_band, length_factors

        densities = blocks.at.values("density", self.density)
        gammas = blocks.at.values("gamma", self.gamma)
        bands = find_bands(blocks, "breadcrumbs", densities, gammas)
        if not self.rescale:
            return bands, [1.0] * len(bands)

        def keep(number: int, vector: Array, at: Place) -> Array:
            return keep_band(vector, bands[number], at)

        return bands, length_factors(blocks, "breadcrumbs", keep)

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        from stillroom.merge.arithmetic import rescale, task_vectors, weigh
        from stillroom.merge.trim import keep_band

        base, vectors = task_vectors(base, parents, "breadcrumbs")
        kept = [
            rescale(keep_band(vector, band, at), factor)
            for vector, band, factor in zip(vectors, *measured, strict=True)
        ]
        return base + self.scale * weigh(kept, at.weights, normalize=self.normalize)

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: Place
    ) -> torch.Tensor:
        from stillroom.merge.replicas import combine, keep_middle, subtract

        base, vectors = subtract(base, parents, "breadcrumbs")
        densities, gammas = at.values("density", self.density), at.values("gamma", self.gamma)
        kept = [
            keep_middle(vector, density, gamma, rescale=self.rescale)
            for vector, density, gamma in zip(vectors, densities, gammas, strict=True)
        ]
        return combine(
            base, kept, at.weights, votes=False, normalize=self.normalize, scale=self.scale
        )
