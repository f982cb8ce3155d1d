"""Consensus: the summed task vectors, masked to elements that enough models need.

Source: Wang et al. 2024, arXiv:2405.07813 (TALL masks and Consensus Merging): a model needs an
element where |delta_i| >= |sum - delta_i| * threshold; elements that fewer than ``agree`` models
need are dropped. Differs: models may have weights, which count in the sum and in the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, PerModel

__all__ = ["Consensus"]


class Consensus(MergeMethod):
    """With ``agree`` at most 1, only elements that no model needs are dropped."""

    paper: ClassVar[str] = "arXiv:2405.07813"
    needs_base: ClassVar[bool] = True
    min_models: ClassVar[int] = 2

    threshold: PerModel[float] = Field(
        0.4, ge=0, description="minimum ratio of a model's change to the others' (lambda)"
    )
    agree: int = Field(2, ge=0, description="minimum number of models that need an element")
    scale: float = Field(1.0, description="multiplier of the merged task vector (alpha)")

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.agree > len(weights):
            raise RecipeError(
                f"agree is {self.agree}, but only {len(weights)} models are merged",
                code="merge.agree",
                where="method.agree",
                expected=f"at most {len(weights)}",
                next="lower it, or add models",
            )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.task_vectors import task_vectors, weighted_sum

        base, vectors = task_vectors(base, parents, "consensus")
        total = weighted_sum(vectors, context.weights)
        votes = np.zeros(total.shape, np.int32)
        thresholds = context.values("threshold", self.threshold)
        for vector, weight, limit in zip(vectors, context.weights, thresholds, strict=True):
            if weight != 1:
                vector *= vector.dtype.type(weight)
            remainder = np.abs(total - vector)
            remainder *= remainder.dtype.type(limit)
            votes += np.abs(vector) >= remainder
        total *= votes >= self.agree
        total *= total.dtype.type(self.scale)
        return base + total
