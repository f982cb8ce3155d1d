"""Model Stock: interpolate from the base toward the mean by the angles between models.

Source: Jang et al. 2024, arXiv:2403.19522, the ratio for N models, with the mean of all pairs'
cosines. Differs: the ratio is clipped to 0 and 1, because opposed vectors would make it diverge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

__all__ = ["ModelStock"]


class ModelStock(MergeMethod):
    """One ratio per tensor, t = N cos / (1 + (N - 1) cos); models are weighted equally."""

    paper: ClassVar[str] = "arXiv:2403.19522"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    min_models: ClassVar[int] = 2

    by_row: bool = Field(False, description="one ratio per row instead of per tensor")

    @override
    def measure(self, blocks: TensorBlocks) -> float | None:
        """Return the ratio of the tensor; None by row, since blocks contain whole rows."""
        from stillroom.merge.tensors.task_vectors import cosine, gram_matrix, task_vectors

        if self.by_row and len(blocks.context.shape) > 1:
            return None
        gram = gram_matrix(
            blocks, lambda block: task_vectors(block.base, block.parents, "model_stock")[1]
        )
        count = len(gram)
        cosines = [cosine(gram, i, j) for i in range(count) for j in range(i)]
        mean = math.fsum(cosines) / len(cosines) if cosines else 0.0
        return _find_ratio(mean, count) if count else 0.0

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: float | None,
        context: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import task_vectors, weighted_sum

        base, vectors = task_vectors(base, parents, "model_stock")
        count = len(vectors)
        if measured is not None:
            return base + weighted_sum(vectors, [measured / count] * count)
        ratios = _find_row_ratios(vectors)
        total = weighted_sum(vectors, [1.0] * count)
        total *= ratios.reshape(-1, *[1] * (base.ndim - 1))
        return base + total


def _find_row_ratios(vectors: Sequence[Array]) -> Array:
    """Return every row's ratio divided by the number of models, in the vectors' type."""
    import numpy as np

    count, rows = len(vectors), [vector.reshape(len(vector), -1) for vector in vectors]
    norms = [np.sqrt(np.einsum("ij,ij->i", row, row, dtype=np.float64)) for row in rows]
    total = np.zeros(len(rows[0]))
    for i in range(count):
        for j in range(i):
            product = np.einsum("ij,ij->i", rows[i], rows[j], dtype=np.float64)
            norm = norms[i] * norms[j]
            total += product / np.where(norm > 0, norm, 1)
    mean = np.clip(total * (2 / (count * (count - 1))), 0, 1)
    ratios: Array = (mean / (1 + (count - 1) * mean)).astype(vectors[0].dtype)
    return ratios


def _find_ratio(mean: float, count: int) -> float:
    mean = min(1.0, max(0.0, mean))
    return count * mean / (1 + (count - 1) * mean)
