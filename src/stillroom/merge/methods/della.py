"""DELLA: drop elements at random, small ones more often, elect a sign, average what agrees.

Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune, elect, fuse). Differs: ``density`` and
``epsilon`` speak of what is kept, with probabilities from density - epsilon for the smallest of a
row to density + epsilon for the largest; a vote that ends in a draw elects +; models may have
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, Blocks, MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["Della"]


class Della(MergeMethod):
    """The vote of TIES on task vectors that were thinned by rank."""

    paper: ClassVar[str] = "arXiv:2406.11617"
    needs_base: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("density", "epsilon")
    replicates: ClassVar[bool] = True

    density: float = Field(0.5, gt=0, le=1, description="mean share of each task vector kept")
    epsilon: float = Field(
        0.15, ge=0, lt=0.5, description="how far from it the smallest and largest of a row are"
    )
    rescale: bool = Field(True, description="divide what is kept by its probability")
    scale: float = Field(1.0, description="multiplier of the merged task vector (lambda)")
    normalize: bool = Field(True, description="average what agrees; off sums it")

    @override
    def measure(self, blocks: Blocks) -> list[list[float]] | None:
        """Return what to multiply the elements of a tensor of one row with."""
        from stillroom.merge.ranks import measure_rows

        return measure_rows(blocks, "della", self._windows(blocks.at), rescale=self.rescale)

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: list[list[float]] | None,
        at: Place,
    ) -> Array:
        from stillroom.merge.arithmetic import disjoint_mean, elect_sign, task_vectors
        from stillroom.merge.ranks import prune_by_rank

        base, vectors = task_vectors(base, parents, "della")
        kept = prune_by_rank(vectors, self._windows(at), measured, at, rescale=self.rescale)
        sign = elect_sign(kept, at.weights)
        merged = disjoint_mean(kept, sign, at.weights, normalize=self.normalize)
        return base + self.scale * merged

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: Place
    ) -> torch.Tensor:
        from stillroom.merge.replicas import combine, drop_by_rank, subtract

        base, vectors = subtract(base, parents, "della")
        kept = [
            drop_by_rank(vector, *window, rescale=self.rescale)
            for vector, window in zip(vectors, self._windows(at), strict=True)
        ]
        return combine(
            base, kept, at.weights, votes=True, normalize=self.normalize, scale=self.scale
        )

    def _windows(self, at: Place) -> list[tuple[float, float]]:
        densities = at.values("density", self.density)
        return list(zip(densities, at.values("epsilon", self.epsilon), strict=True))
