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
    import torch

    from stillroom.merge.tensors.linear_algebra import MixCoefficients

__all__ = ["Multislerp"]


class Multislerp(MergeMethod):
    """With a base, the task vectors are averaged and added to it."""

    paper: ClassVar[str] = ""
    replicates: ClassVar[bool] = True

    normalize: bool = Field(True, description="divide the weights by their sum")
    eps: float = Field(
        1e-8, gt=0, description="with compat: mergekit, added to norms before division"
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

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], context: BlockContext
    ) -> torch.Tensor:
        """See ``MergeMethod.replicate``; the base is optional and never an input.

        Raises:
            RecipeError: If three or more directions cancel out, as in mergekit.
        """
        import torch

        stacked = torch.stack(list(parents))
        vectors = (stacked if base is None else stacked - base).reshape(len(parents), -1)
        weights = torch.tensor(context.weights, dtype=vectors.dtype)
        if self.normalize:
            weights = weights / weights.sum()
        column = weights.view(-1, 1)
        lengths = torch.norm(vectors, dim=1, keepdim=True)
        units = vectors / (lengths + self.eps)
        mean = (units * column).sum(0)
        size = torch.norm(mean)
        if size < self.eps:
            merged = self._cancelled(vectors, column, context)
        else:
            mean = mean / size
            tangents = units - (units * mean).sum(1, keepdim=True) * mean
            tangent = (tangents * column).sum(0)
            step = torch.norm(tangent) + self.eps
            merged = mean * torch.cos(step) + tangent * (torch.sin(step) / step)
            merged = merged * (lengths.squeeze(-1) * weights).sum()
        merged = merged.view(parents[0].shape)
        return merged if base is None else base + merged

    def _cancelled(
        self, vectors: torch.Tensor, column: torch.Tensor, context: BlockContext
    ) -> torch.Tensor:
        from stillroom.errors import RecipeError

        if len(vectors) == 2:
            return (vectors * column).sum(0)
        raise RecipeError(
            f"the weighted directions of '{context.name}' cancel out, which mergekit does not "
            f"support",
            code="merge.cancelled",
            where=context.name,
            expected="directions with a nonzero mean, such as models that differ from the base",
            next="merge with compat: paper, which then uses the weighted sum",
        )
