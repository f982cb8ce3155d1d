"""Run average (LAWA, or EMA): the mean of checkpoints of one training run.

Source: Kaddour 2022, LAWA, arXiv:2209.14981 (uniform over the latest checkpoints). Differs: with
``ema``, each checkpoint counts ``decay`` times as much as the next later one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["RunAverage"]


class RunAverage(MergeMethod):
    """Expects the models from the earliest to the latest."""

    paper: ClassVar[str] = "arXiv:2209.14981"
    is_ordered: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    average: Literal["uniform", "ema"] = Field(
        "uniform", description="equal weights, or exponentially larger ones for later checkpoints"
    )
    decay: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="with ema: weight of a checkpoint relative to the next later one",
    )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import weighted_sum

        weights = [1.0] * len(parents)
        if self.average == "ema":
            weights = [self.decay ** (len(parents) - 1 - index) for index in range(len(parents))]
        total = weighted_sum(parents, weights)
        total /= total.dtype.type(math.fsum(weights))
        return total
