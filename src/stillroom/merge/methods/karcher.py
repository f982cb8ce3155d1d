"""Karcher mean: the point on the sphere nearest to all models, at their mean length.

Source: Wang et al. 2026, arXiv:2603.04972, the fixed-point iteration on the sphere that
approximates the Fisher-Rao manifold. Differs: it iterates on one coefficient per model instead of
on tensors, so it can run until convergence; models of length zero only count in the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

if TYPE_CHECKING:
    from stillroom.merge.tensors.linear_algebra import MixCoefficients

__all__ = ["Karcher"]


class Karcher(MergeMethod):
    """For two models of equal length it is slerp at 0.5; a base is not used."""

    paper: ClassVar[str] = "arXiv:2603.04972"

    max_iter: int = Field(100, ge=0, le=10_000, description="maximum number of iterations")
    tol: float = Field(1e-10, ge=0, description="stop when a step is shorter than this")

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import normalize_weights

        super().check(weights)
        normalize_weights(weights, "karcher")

    @override
    def measure(self, blocks: TensorBlocks) -> MixCoefficients:
        """Return the coefficients of this tensor."""
        from stillroom.merge.tensors.linear_algebra import karcher_coefficients, normalize_weights
        from stillroom.merge.tensors.task_vectors import gram_matrix

        gram = gram_matrix(blocks, lambda block: block.parents)
        shares = normalize_weights(blocks.context.weights, "karcher")
        return karcher_coefficients(gram, shares, self.max_iter, self.tol)

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: MixCoefficients,
        context: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.linear_algebra import combine_parents

        return combine_parents(None, parents, measured)
