"""Model Stock: from the base toward the mean, as far as the angles between models allow.

Source: Jang et al. 2024, arXiv:2403.19522, the ratio for N models, with the mean of all pairs'
cosines. Differs: the ratio is kept within 0 and 1, because vectors that point apart would fling it
off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.merge.method import Blocks, MergeMethod, Place

if TYPE_CHECKING:
    import torch

__all__ = ["ModelStock"]


class ModelStock(MergeMethod):
    """One ratio a tensor, t = N cos / (1 + (N - 1) cos); models count alike."""

    paper: ClassVar[str] = "arXiv:2403.19522"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    least_parents: ClassVar[int] = 2

    @override
    def measure(self, blocks: Blocks) -> float:
        """Return the ratio for this tensor."""
        from stillroom.merge.arithmetic import products, task_vectors

        gram = products(
            blocks, lambda block: task_vectors(block.base, block.parents, "model_stock")[1]
        )
        count = len(gram)
        cosines = []
        for i in range(count):
            for j in range(i):
                norm = math.sqrt(gram[i, i] * gram[j, j])
                cosines.append(gram[i, j] / norm if norm > 0 else 0.0)
        cosine = math.fsum(cosines) / len(cosines) if cosines else 0.0
        cosine = min(1.0, max(0.0, cosine))
        return count * cosine / (1 + (count - 1) * cosine) if count else 0.0

    @override
    def combine(
        self,
        base: torch.Tensor | None,
        parents: Sequence[torch.Tensor],
        measured: float,
        at: Place,
    ) -> torch.Tensor:
        from stillroom.merge.arithmetic import task_vectors, weighted_sum

        base, vectors = task_vectors(base, parents, "model_stock")
        return base + weighted_sum(vectors, [measured / len(vectors)] * len(vectors))
