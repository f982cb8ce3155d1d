"""DARE: drop elements of task vectors at random, rescale the rest, add them up.

Source: Yu et al. 2023, arXiv:2311.03099, Algorithm 1 (drop with probability 1 - density, multiply
by 1 / density). The paper's vectors are small; at large ones the rescaling does harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["DareLinear"]


class DareLinear(MergeMethod):
    """Task arithmetic on thinned task vectors; the expectation is that of the full ones."""

    paper: ClassVar[str] = "arXiv:2311.03099"
    needs_base: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("density",)
    replicates: ClassVar[bool] = True

    density: float = Field(0.5, gt=0, le=1, description="share of each task vector kept")
    rescale: bool = Field(True, description="divide what is kept by the density")
    scale: float = Field(1.0, description="multiplier of the sum of task vectors (lambda)")
    normalize: bool = Field(False, description="divide the sum by that of the weights")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        from stillroom.merge.arithmetic import task_vectors, thin, weigh

        base, vectors = task_vectors(base, parents, "dare_linear")
        kept = thin(vectors, at.values("density", self.density), at, rescale=self.rescale)
        return base + self.scale * weigh(kept, at.weights, normalize=self.normalize)

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: Place
    ) -> torch.Tensor:
        from stillroom.merge.replicas import combine, drop_at_random, subtract

        base, vectors = subtract(base, parents, "dare_linear")
        densities = at.values("density", self.density)
        kept = [
            drop_at_random(vector, density, rescale=self.rescale)
            for vector, density in zip(vectors, densities, strict=True)
        ]
        return combine(
            base, kept, at.weights, votes=False, normalize=self.normalize, scale=self.scale
        )
