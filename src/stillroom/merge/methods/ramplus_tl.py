"""RAM+: as RAM, with elements changed by one model enlarged by its share of common changes.

Source: Yuan et al. 2026, arXiv:2601.13572: 1 + r * clip(shared / unique, 0, alpha), where shared
and unique are numbers of changed elements; per tensor, as mergekit's "tensor-local" variant.
Differs: ``count: model`` counts over the whole model instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, RowBlock, TensorBlocks

__all__ = ["RamplusTl"]


class RamplusTl(MergeMethod):
    """With ``r`` 0 it is RAM."""

    paper: ClassVar[str] = "arXiv:2601.13572"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    epsilon: float = Field(
        1e-5, ge=0, description="minimum change for an element to count as changed"
    )
    r: float = Field(0.1, ge=0, description="strength of the enlargement of unique changes")
    alpha: float = Field(0.2, ge=0, description="maximum of shared / unique")
    count: Literal["tensor", "model"] = Field(
        "tensor", description="count changed elements by tensor, or over the whole model"
    )

    @override
    def survey(self, tensors: Sequence[TensorBlocks]) -> list[list[int]] | None:
        """Return the numbers of shared and unique changes of each model over all tensors."""
        if self.count == "tensor" or not tensors:
            return None
        return _add([self._tally(blocks) for blocks in tensors])

    @override
    def measure(self, blocks: TensorBlocks) -> list[float]:
        """Return one factor per model for its unique changes."""
        global_statistics = blocks.context.global_statistics if self.count == "model" else None
        return [self._factor(*pair) for pair in global_statistics or self._tally(blocks)]

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: list[float],
        context: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import (
            count_changed,
            drop_unchanged,
            plain_sum,
            task_vectors,
        )

        base, vectors = task_vectors(base, parents, "ramplus_tl")
        count = count_changed(vectors, self.epsilon)
        changes = drop_unchanged(vectors, self.epsilon)
        total = plain_sum(changes)
        total /= count + (count == 0)
        unique = count == 1
        for vector, factor in zip(changes, measured, strict=True):
            if factor != 1:
                vector *= unique
                vector *= vector.dtype.type(factor - 1)
                total += vector
        return base + total

    def _tally(self, blocks: TensorBlocks) -> list[list[int]]:
        """Return the numbers of shared and unique changes of each model in one tensor."""
        import numpy as np

        from stillroom.merge.tensors.task_vectors import count_changed, task_vectors

        def reduce(block: RowBlock) -> list[list[int]]:
            _, vectors = task_vectors(block.base, block.parents, "ramplus_tl")
            unique = count_changed(vectors, self.epsilon) == 1
            tallies = []
            for vector in vectors:
                changed = abs(vector) > self.epsilon
                alone = int(np.count_nonzero(changed & unique))
                tallies.append([int(np.count_nonzero(changed)) - alone, alone])
            return tallies

        parts = blocks.each(reduce)
        return _add(parts) if parts else [[0, 0] for _ in blocks.context.keys]

    def _factor(self, shared: int, unique: int) -> float:
        ratio = shared / unique if unique else 0.0
        return 1 + self.r * min(ratio, self.alpha)


def _add(tallies: Sequence[list[list[int]]]) -> list[list[int]]:
    """Sum tallies by model."""
    return [
        [sum(shared for shared, _ in column), sum(alone for _, alone in column)]
        for column in zip(*tallies, strict=True)
    ]
