"""DARE with TIES: drop elements at random, rescale, elect a sign, average what agrees.

Source: Yu et al. 2023, arXiv:2311.03099, with the vote of Yadav et al. 2023, arXiv:2306.01708.
Differs from both papers' code: nothing is trimmed by magnitude after the random drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["DareTies"]


class DareTies(MergeMethod):
    """The random drop of DARE before the vote of TIES."""

    paper: ClassVar[str] = "arXiv:2311.03099"
    needs_base: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("density",)
    replicates: ClassVar[bool] = True

    density: float = Field(0.5, gt=0, le=1, description="share of each task vector kept")
    rescale: bool = Field(True, description="divide what is kept by the density")
    scale: float = Field(1.0, description="multiplier of the merged task vector (lambda)")
    normalize: bool = Field(True, description="average what agrees; off sums it")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        from stillroom.merge.arithmetic import disjoint_mean, elect_sign, task_vectors, thin

        base, vectors = task_vectors(base, parents, "dare_ties")
        kept = thin(vectors, at.values("density", self.density), at, rescale=self.rescale)
        sign = elect_sign(kept, at.weights)
        merged = disjoint_mean(kept, sign, at.weights, normalize=self.normalize)
        return base + self.scale * merged

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: Place
    ) -> torch.Tensor:
        from stillroom.merge.replicas import combine, drop_at_random, subtract

        base, vectors = subtract(base, parents, "dare_ties")
        densities = at.values("density", self.density)
        kept = [
            drop_at_random(vector, density, rescale=self.rescale)
            for vector, density in zip(vectors, densities, strict=True)
        ]
        return combine(
            base, kept, at.weights, votes=True, normalize=self.normalize, scale=self.scale
        )
