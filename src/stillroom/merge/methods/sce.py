"""SCE: select elements with high variance, weight models by their energy, erase minority signs.

Source: Wan et al. 2024, arXiv:2408.07990 (FuseChat: select, calculate, erase). Differs: elements
with equal spread at the threshold are kept in order, so that the share kept is exact; a tied vote
elects +; all-zero models get equal weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypedDict

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, RowBlock, TensorBlocks

if TYPE_CHECKING:
    from stillroom.merge.tensors.trimming import TrimThreshold

__all__ = ["Sce"]


class _Measured(TypedDict):
    cut: TrimThreshold | None
    shares: list[float]


class Sce(MergeMethod):
    """If all models are equal there is no spread, and with density below 1 the base is returned."""

    paper: ClassVar[str] = "arXiv:2408.07990"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    density: float = Field(
        0.1, ge=0, le=1, description="share of a tensor's elements kept, by variance of the models"
    )
    normalize: bool = Field(True, description="average the agreeing elements; off: sum them")

    @override
    def measure(self, blocks: TensorBlocks) -> _Measured:
        """Return the spread threshold, and every model's share of the kept elements' energy."""
        import math

        from stillroom.merge.tensors.task_vectors import exact_sum
        from stillroom.merge.tensors.trimming import find_thresholds

        (threshold,) = find_thresholds(
            [blocks], lambda block: [_spread(_vectors(block))], [self.density]
        )

        def squares(block: RowBlock) -> list[Array]:
            return [vector * vector for vector in _keep(_vectors(block), threshold, block.context)]

        energies = exact_sum(blocks, squares) if len(blocks) else [0.0] * len(blocks.context.keys)
        total = math.fsum(energies)
        shares = [energy / total if total > 0 else 1 / len(energies) for energy in energies]
        return {"cut": threshold, "shares": shares}

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: _Measured,
        context: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import disjoint_mean, elect_sign, task_vectors

        base, vectors = task_vectors(base, parents, "sce")
        selected = _keep(vectors, measured["cut"], context)
        sign = elect_sign(selected, [1.0] * len(selected))
        return base + disjoint_mean(selected, sign, measured["shares"], normalize=self.normalize)


def _vectors(block: RowBlock) -> list[Array]:
    from stillroom.merge.tensors.task_vectors import task_vectors

    return task_vectors(block.base, block.parents, "sce")[1]


def _spread(vectors: Sequence[Array]) -> Array:
    """Return the standard deviation over models, which ranks as variance with less range."""
    import numpy as np

    from stillroom.merge.tensors.linear_algebra import plain_mean

    mean = plain_mean(vectors)
    total = np.zeros_like(mean)
    for vector in vectors:
        off = vector - mean
        off *= off
        total += off
    total /= len(vectors)
    return np.sqrt(total)


def _keep(
    vectors: list[Array], threshold: TrimThreshold | None, context: BlockContext
) -> list[Array]:
    from stillroom.merge.tensors.trimming import mask_above

    if threshold is None:
        return vectors
    mask = mask_above(_spread(vectors), threshold, context)
    return [vector * mask for vector in vectors]
