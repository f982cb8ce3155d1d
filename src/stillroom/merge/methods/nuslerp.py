"""NuSLERP: along the great circle between two models, or between their task vectors.

Source: Shoemake 1985, spherical linear interpolation (doi:10.1145/325165.325242), with weights
instead of t and with a base, as mergekit has it. Differs: vectors that point the same or the
opposite way, and such of length zero, are mixed on the straight line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

if TYPE_CHECKING:
    import torch

__all__ = ["Nuslerp"]


class Nuslerp(MergeMethod):
    """The weights w say where: w2 / (w1 + w2) of the way from the first model to the second.

    With a base, task vectors are turned and added to it. ``per`` row or column turns each of them
    on its own; a tensor of fewer than two dimensions is always one vector.
    """

    paper: ClassVar[str] = "doi:10.1145/325165.325242"
    least_parents: ClassVar[int] = 2
    most_parents: ClassVar[int] = 2
    replicates: ClassVar[bool] = True

    per: Literal["tensor", "row", "column"] = Field(
        "tensor", description="what is turned as one vector: last dimension is row, first is column"
    )

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import slerp_weight

        super().check(weights)
        slerp_weight(weights, "nuslerp")

    @override
    def check_replica(self, weights: Sequence[float]) -> str:
        """Let weights pass that add up to zero, which mergekit takes for equal ones."""
        super().check(weights)
        if not _cancels(weights):
            return ""
        return "the weights of nuslerp add up to zero, which mergekit takes for equal ones"

    @override
    def measure(self, blocks: TensorBlocks) -> Any:
        """Return the mix of the tensor, or the products of every column."""
        from stillroom.merge.tensors.linear_algebra import (
            parent_gram_matrix,
            slerp_coefficients,
            slerp_weight,
        )

        per = _unit(self.per, blocks.at)
        if per == "column":
            return _column_products(blocks)
        if per == "row":
            return None
        return slerp_coefficients(
            parent_gram_matrix(blocks), slerp_weight(blocks.at.weights, "nuslerp")
        )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import combine_parents, slerp_weight

        share = slerp_weight(at.weights, "nuslerp")
        first, second = parents
        if share in (0, 1):
            return second if share else first
        per = _unit(self.per, at)
        if per == "tensor":
            return combine_parents(base, parents, measured)
        if per == "row":
            one, two = parents if base is None else (first - base, second - base)
            sums = [
                np.einsum("...i,...i->...", left, right).astype(np.float64)[..., np.newaxis]
                for left, right in ((one, one), (one, two), (two, two))
            ]
        else:
            sums = measured
        return _turn_each(base, first, second, sums, share)

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: BlockContext
    ) -> torch.Tensor:
        """See ``MergeMethod.replicate``; the base is optional and never an input."""
        import torch

        one, two = at.weights
        share = 0.5 if _cancels(at.weights) else two / (one + two)
        vectors = [parent if base is None else parent - base for parent in parents]
        dim = 0 if self.per == "column" else -1
        if self.per == "tensor":
            vectors = [vector.reshape(-1) for vector in vectors]
        lengths = [torch.norm(vector, dim=dim, keepdim=True) for vector in vectors]
        first, second = (
            vector / length.clamp(min=1e-7) for vector, length in zip(vectors, lengths, strict=True)
        )
        turned = (first * second).sum(dim=dim, keepdim=True).clamp(-1, 1)
        angle = torch.arccos(turned)
        arc = torch.sin((1 - share) * angle) * vectors[0] + torch.sin(share * angle) * vectors[1]
        straight = (1 - share) * vectors[0] + share * vectors[1]
        merged = torch.where(1 - turned**2 <= 1e-16, straight, arc / torch.sin(angle))
        merged = merged.reshape(parents[0].shape)
        return merged if base is None else base + merged


def _cancels(weights: Sequence[float]) -> bool:
    """Return whether mergekit takes the middle, whatever the weights are."""
    return abs(sum(weights)) < 1e-6


def _unit(per: str, at: BlockContext) -> str:
    return per if len(at.shape) > 1 else "tensor"


def _column_products(blocks: TensorBlocks) -> list[Array]:
    """Return the sums of squares and products down every column, added row after row."""
    import numpy as np

    sums = [np.zeros(blocks.at.shape[1:], np.float64) for _ in range(3)]
    for block in blocks:
        one, two = (
            (parent if block.base is None else parent - block.base).astype(np.float64)
            for parent in block.parents
        )
        for total, left, right in zip(sums, (one, one, two), (one, two, two), strict=True):
            for row in left * right:
                total += row
    return sums


def _turn_each(
    base: Array | None, first: Array, second: Array, sums: Sequence[Array], share: float
) -> Array:
    """Mix with a coefficient for each row or column."""
    import numpy as np

    norm = np.sqrt(sums[0]) * np.sqrt(sums[2])
    is_flat = norm == 0
    turned = np.clip(sums[1] / np.where(is_flat, 1, norm), -1, 1)
    is_flat |= 1 - turned**2 <= 1e-12
    angle = np.arccos(np.where(is_flat, 0.5, turned))
    one, two = (np.sin(part * angle) / np.sin(angle) for part in (1 - share, share))
    extra = np.where(is_flat, 0, one + two - 1).astype(first.dtype)
    moved = first + np.where(is_flat, share, two).astype(first.dtype) * (second - first)
    result: Array = moved + extra * (first if base is None else first - base)
    return result
