"""Linear: the weighted mean of the models.

Source: Wortsman et al. 2022, model soups, arXiv:2203.05482. Merging identical models returns them,
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

if TYPE_CHECKING:
    import torch

    from stillroom.merge.mergekit.numpy_arithmetic import CastBlocks, TorchGenerator

__all__ = ["Linear"]


class Linear(MergeMethod):
    """The weighted mean, or without ``normalize`` the weighted sum."""

    paper: ClassVar[str] = "arXiv:2203.05482"
    replicates: ClassVar[bool] = True

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

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], context: BlockContext
    ) -> torch.Tensor:
        import torch

        total = parents[0].float() * context.weights[0]
        for parent, weight in zip(parents[1:], context.weights[1:], strict=True):
            total.add_(parent.float(), alpha=weight)  # fused: one rounding per model
        if self.normalize:
            total /= torch.tensor(list(context.weights), dtype=torch.float32).sum()
        return total.to(parents[0].dtype)

    @override
    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        return parents < 8  # torch sums more weights in a machine-dependent order

    @override
    def retrace(self, blocks: CastBlocks, draws: TorchGenerator) -> Callable[[int], Array]:
        import numpy as np

        from stillroom.merge.mergekit.numpy_arithmetic import fused_multiply_add, round_to

        weights = [np.float32(weight) for weight in blocks.context.weights]
        mass = np.float32(0)
        for weight in (
            *weights[:1],
            *weights[4:],
            *weights[1:4],
        ):  # torch sums them in groups of four
            mass += weight

        def combine(number: int) -> Array:
            block = blocks[number]
            total: Array = block.parents[0] * weights[0]
            for parent, weight in zip(block.parents[1:], block.context.weights[1:], strict=True):
                fused_multiply_add(total, parent, weight)
            if self.normalize:
                total /= mass
            return round_to(total, blocks.kind)

        return combine
