"""NuSLERP: spherical interpolation by weights between two models, or between their task vectors.

Source: Shoemake 1985, spherical linear interpolation (doi:10.1145/325165.325242), with weights
instead of t, and with an optional base, as in mergekit. Differs: vectors with the same or opposite
direction, and those of length zero, are interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

__all__ = ["Nuslerp"]


class Nuslerp(MergeMethod):
    """Interpolate at w2 / (w1 + w2) of the arc from the first model to the second.

    With a base, task vectors are interpolated and added to it. ``per`` row or column interpolates
    each of them separately; a tensor of fewer than two dimensions is always one vector.
    """

    paper: ClassVar[str] = "doi:10.1145/325165.325242"
    min_models: ClassVar[int] = 2
    max_models: ClassVar[int] = 2

    per: Literal["tensor", "row", "column"] = Field(
        "tensor",
        description="unit of interpolation: rows run along the last dimension, columns along the "
        "first",
    )

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import slerp_weight

        super().check(weights)
        slerp_weight(weights, "nuslerp")

    @override
    def measure(self, blocks: TensorBlocks) -> Any:
        """Return the coefficients of the tensor, or the products of every column."""
        from stillroom.merge.tensors.linear_algebra import (
            parent_gram_matrix,
            slerp_coefficients,
            slerp_weight,
        )

        per = _unit(self.per, blocks.context)
        if per == "column":
            return _column_products(blocks)
        if per == "row":
            return None
        return slerp_coefficients(
            parent_gram_matrix(blocks), slerp_weight(blocks.context.weights, "nuslerp")
        )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import combine_parents, slerp_weight

        share = slerp_weight(context.weights, "nuslerp")
        first, second = parents
        if share in (0, 1):
            return second if share else first
        per = _unit(self.per, context)
        if per == "tensor":
            return combine_parents(base, parents, measured)
        if per == "row":
            first_vector, second_vector = parents if base is None else (first - base, second - base)
            sums = [
                np.einsum("...i,...i->...", first_factor, second_factor).astype(np.float64)[
                    ..., np.newaxis
                ]
                for first_factor, second_factor in (
                    (first_vector, first_vector),
                    (first_vector, second_vector),
                    (second_vector, second_vector),
                )
            ]
        else:
            sums = measured
        return _turn_each(base, first, second, sums, share)


def _unit(per: str, context: BlockContext) -> str:
    return per if len(context.shape) > 1 else "tensor"


def _column_products(blocks: TensorBlocks) -> list[Array]:
    """Return the sums of squares and products of every column, added row by row."""
    import numpy as np

    sums = [np.zeros(blocks.context.shape[1:], np.float64) for _ in range(3)]
    for block in blocks:
        first, second = (
            (parent if block.base is None else parent - block.base).astype(np.float64)
            for parent in block.parents
        )
        for total, first_factor, second_factor in zip(
            sums, (first, first, second), (first, second, second), strict=True
        ):
            for row in first_factor * second_factor:
                total += row
    return sums


def _turn_each(
    base: Array | None, first: Array, second: Array, sums: Sequence[Array], share: float
) -> Array:
    """Interpolate with one coefficient per row or column."""
    import numpy as np

    norm = np.sqrt(sums[0]) * np.sqrt(sums[2])
    is_flat = norm == 0
    cosine = np.clip(sums[1] / np.where(is_flat, 1, norm), -1, 1)
    is_flat |= 1 - cosine**2 <= 1e-12
    angle = np.arccos(np.where(is_flat, 0.5, cosine))
    first_share, second_share = (
        np.sin(part * angle) / np.sin(angle) for part in (1 - share, share)
    )
    extra = np.where(is_flat, 0, first_share + second_share - 1).astype(first.dtype)
    moved = first + np.where(is_flat, share, second_share).astype(first.dtype) * (second - first)
    result: Array = moved + extra * (first if base is None else first - base)
    return result
