"""Linear: the weighted mean (model soup); with ``normalize`` weights are divided by their sum.

Source: Wortsman et al. 2022, model soups, arXiv:2203.05482. Merging identical models returns them,
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Linear"]


class Linear(MergeMethod):
    """The weighted mean, or without ``normalize`` the weighted sum."""

    paper: ClassVar[str] = "arXiv:2203.05482"

    normalize: bool = Field(True, description="divide by the sum of the weights")

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.normalize:
            from stillroom.merge.tensors.task_vectors import check_weight_sum

            check_weight_sum(weights)

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import combine_weighted

        return combine_weighted(parents, context.weights, normalize=self.normalize)
