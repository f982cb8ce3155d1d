"""Linear: the weighted mean of the models.

Source: Wortsman et al. 2022, model soups, arXiv:2203.05482. Merging identical models returns them,
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Linear"]


class Linear(MergeMethod):
    """The weighted mean, or without ``normalize`` the weighted sum."""

    paper: ClassVar[str] = "arXiv:2203.05482"

    normalize: bool = Field(True, description="divide by the sum of the weights")

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.normalize and abs(math.fsum(weights)) < 1e-9:
            raise RecipeError(
                "the weights add up to zero",
                code="merge.weights",
                where="models",
                expected="weights with a sum other than 0",
                next="change a weight, or set method.normalize to false",
            )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import weighted_sum

        total = weighted_sum(parents, context.weights)
        if self.normalize:
            total /= total.dtype.type(math.fsum(context.weights))
        return total
