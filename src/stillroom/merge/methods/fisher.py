"""Fisher merging: average each parameter weighted by the models' Fisher information.

Source: Matena and Raffel 2021, arXiv:2111.09832, equation 4, with the diagonal Fisher information
floored at a small value and, by default, divided by each model's norm, as in their code. Differs:
computed as a change from the first parent, so that equal models stay unchanged. Tensors without
statistics (buffers) get the weighted mean.
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
    min_models: ClassVar[int] = 2

    statistics: tuple[str, ...] = Field(
        description="folders of Fisher statistics, one per model, in any order", min_length=1
    )
    floor: float = Field(1e-8, gt=0, description="minimum Fisher value, after normalizing")
    normalize: bool = Field(True, description="divide each model's Fisher values by their norm")

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import check_positive_weights

        super().check(weights)
        check_positive_weights(weights, "fisher")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import weighted_mean
        from stillroom.merge.tensors.storage import find_statistics

        statistics_by_parent = find_statistics(self.statistics, context.keys, "fisher", "fisher")
        if not all(context.name in statistics for statistics in statistics_by_parent):
            return weighted_mean(parents, context.weights)
        width = math.prod(context.shape[1:])
        start = context.offset // max(width, 1)
        stop = start + (parents[0].shape[0] if parents[0].ndim else 1)
        shares = []
        for statistics, weight in zip(statistics_by_parent, context.weights, strict=True):
            share = statistics.rows(context.name, start, stop, dtype=parents[0].dtype)
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
