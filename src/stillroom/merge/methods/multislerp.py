"""Multi-SLERP: the mean of several models in the tangent space of their mean direction.

Source: mergekit's multislerp (its author's note goddard.blog/posts/multislerp-wow-what-a-cool-idea,
there is no paper): log map at the normalized weighted mean, weighted sum, exp map, times the
weighted length. The log map is the projection on the tangent plane, as there. Differs: if
directions cancel out, the weighted sum is used for any number of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

if TYPE_CHECKING:
    from stillroom.merge.tensors.linear_algebra import MixCoefficients

__all__ = ["Multislerp"]


class Multislerp(MergeMethod):
    """With a base, the task vectors are averaged and added to it."""

    paper: ClassVar[str] = ""

    normalize: bool = Field(True, description="divide the weights by their sum")
    eps: float = Field(
        1e-8, gt=0, description="with arithmetic: mergekit, added to norms before division"
    )

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        self._shares(weights)

    def _shares(self, weights: Sequence[float]) -> list[float]:
        from stillroom.merge.tensors.linear_algebra import normalize_weights

        return normalize_weights(weights, "multislerp") if self.normalize else list(weights)

    @override
    def measure(self, blocks: TensorBlocks) -> MixCoefficients:
        """Return the coefficients of this tensor."""
        from stillroom.merge.tensors.linear_algebra import (
            multislerp_coefficients,
            parent_gram_matrix,
        )

        shares = self._shares(blocks.context.weights)
        return multislerp_coefficients(
            parent_gram_matrix(blocks), shares, 1.0 if self.normalize else math.fsum(shares)
        )

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: MixCoefficients,
        context: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.linear_algebra import combine_parents

        return combine_parents(base, parents, measured)
