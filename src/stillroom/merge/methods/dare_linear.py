"""DARE: drop elements of task vectors at random, rescale the rest, add them up.

Source: Yu et al. 2023, arXiv:2311.03099, Algorithm 1 (drop with probability 1 - density, multiply
by 1 / density). The paper's vectors are small; at large ones the rescaling does harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["DareLinear"]


class DareLinear(MergeMethod):
    """Task arithmetic on thinned task vectors; the expectation is that of the full ones."""

    paper: ClassVar[str] = "arXiv:2311.03099"
    needs_base: ClassVar[bool] = True
    uses_densities: ClassVar[bool] = True

    density: float = Field(0.5, gt=0, le=1, description="share of each task vector kept")
    rescale: bool = Field(True, description="divide what is kept by the density")
    scale: float = Field(1.0, description="multiplier of the sum of task vectors (lambda)")

    @override
    def combine(
        self,
        base: torch.Tensor | None,
        parents: Sequence[torch.Tensor],
        measured: Any,
        at: Place,
    ) -> torch.Tensor:
        from stillroom.merge.arithmetic import task_vectors, thin, weighted_sum

        base, vectors = task_vectors(base, parents, "dare_linear")
        kept = thin(vectors, self.density, at, rescale=self.rescale)
        return base + self.scale * weighted_sum(kept, at.weights)
