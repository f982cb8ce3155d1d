"""Fisher merging: each number averaged by how much each model's predictions depend on it.

Source: Matena and Raffel 2021, arXiv:2111.09832, equation 4, with the diagonal Fisher information
floored at a small number and, by default, each model's divided by its norm, as their code does.
Differs: computed as a change from the first parent, so that equal models stay what they are.
Tensors without statistics (buffers) get the weighted mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Fisher"]


class Fisher(MergeMethod):
    """theta = sum of w F theta / sum of w F, element by element."""

    paper: ClassVar[str] = "arXiv:2111.09832"
    least_parents: ClassVar[int] = 2

    statistics: tuple[str, ...] = Field(
        description="folders of Fisher statistics, one a model, in any order", min_length=1
    )
    floor: float = Field(1e-8, gt=0, description="least Fisher value, after normalizing")
    normalize: bool = Field(True, description="divide each model's Fisher values by their norm")

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import check_positive_weights

        super().check(weights)
        check_positive_weights(weights, "fisher")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import weighted_mean
        from stillroom.merge.tensors.storage import find_statistics

        found = find_statistics(self.statistics, at.keys, "fisher", "fisher")
        if not all(at.name in statistics for statistics in found):
            return weighted_mean(parents, at.weights)
        width = math.prod(at.shape[1:])
        start = at.offset // max(width, 1)
        stop = start + (parents[0].shape[0] if parents[0].ndim else 1)
        shares = []
        for statistics, weight in zip(found, at.weights, strict=True):
            share = statistics.rows(at.name, start, stop, dtype=parents[0].dtype)
            norm = float(statistics.about["norm"])
            share *= share.dtype.type(1 / norm if self.normalize and norm > 0 else 1.0)
            np.maximum(share, share.dtype.type(self.floor), out=share)
            share *= share.dtype.type(weight)
            shares.append(share)
        total = sum(shares[1:], shares[0].copy())
        result = parents[0].copy()
        for parent, share in zip(parents[1:], shares[1:], strict=True):
            result += (parent - parents[0]) * (share / total)
        return result
