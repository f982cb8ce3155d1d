"""Slerp: spherical linear interpolation of two models; lerp if they are collinear.

Source: Shoemake 1985, spherical linear interpolation (doi:10.1145/325165.325242), applied to each
tensor as one vector. Differs: nearly parallel vectors (|cos| over 0.9995) are interpolated
linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

__all__ = ["Slerp"]

_STRAIGHT = 0.9995


class Slerp(MergeMethod):
    """``t`` 0 returns the first model and 1 the second, both bit for bit."""

    paper: ClassVar[str] = "doi:10.1145/325165.325242"
    is_ordered: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    min_models: ClassVar[int] = 2
    max_models: ClassVar[int] = 2

    t: float = Field(0.5, ge=0, le=1, description="0 is the first model, 1 the second")

    @override
    def measure(self, blocks: TensorBlocks) -> tuple[float, float]:
        """Return the coefficients of both models; they add up to 1 if interpolated linearly."""
        from stillroom.merge.tensors.task_vectors import cosine, gram_matrix

        if self.t in (0, 1):
            return 1 - self.t, self.t
        gram = gram_matrix(blocks, lambda block: block.parents)
        if not gram.size or not gram[0, 0] * gram[1, 1]:
            return 1 - self.t, self.t
        cosine_value = cosine(gram, 0, 1)
        if abs(cosine_value) > _STRAIGHT:
            return 1 - self.t, self.t
        angle = math.acos(cosine_value)
        return (
            math.sin((1 - self.t) * angle) / math.sin(angle),
            math.sin(self.t * angle) / math.sin(angle),
        )

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: tuple[float, float],
        context: BlockContext,
    ) -> Array:
        first, second = parents
        if self.t in (0, 1):
            return second if self.t else first
        return first * measured[0] + second * measured[1]
