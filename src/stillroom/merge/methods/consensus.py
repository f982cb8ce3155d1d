"""Consensus: the summed task vectors, only where enough models need them.

Source: Wang et al. 2024, arXiv:2405.07813 (TALL masks and Consensus Merging): a model needs an
element where |delta_i| >= |sum - delta_i| * threshold; what fewer than ``agree`` models need is
dropped. Differs: models may have weights, which count in the sum and in the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Consensus"]


class Consensus(MergeMethod):
    """With agree 1 or less it drops only what no model needs."""

    paper: ClassVar[str] = "arXiv:2405.07813"
    needs_base: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("threshold",)
    least_parents: ClassVar[int] = 2

    threshold: float = Field(
        0.4, ge=0, description="how large a model's change must be beside the others' (lambda)"
    )
    agree: int = Field(2, ge=0, description="how many models must need an element")
    scale: float = Field(1.0, description="multiplier of the merged task vector (alpha)")

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.agree > len(weights):
            raise RecipeError(
                f"{self.agree} models are to agree, and there are {len(weights)}",
                code="merge.agree",
                where="method.agree",
                expected=f"at most {len(weights)}",
                next="lower it, or add models",
            )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.task_vectors import task_vectors, weighted_sum

        base, vectors = task_vectors(base, parents, "consensus")
        total = weighted_sum(vectors, at.weights)
        votes = np.zeros(total.shape, np.int32)
        thresholds = at.values("threshold", self.threshold)
        for vector, weight, limit in zip(vectors, at.weights, thresholds, strict=True):
            if weight != 1:
                vector *= vector.dtype.type(weight)
            others = np.abs(total - vector)
            others *= others.dtype.type(limit)
            votes += np.abs(vector) >= others
        total *= votes >= self.agree
        total *= total.dtype.type(self.scale)
        return base + total
