"""Arcee Fusion: take the most important changes of a second model, and keep the base elsewhere.

Source: mergekit's arcee_fusion (Arcee AI; there is no paper): importance is the difference times
the divergence KL(softmax(model) || softmax(base)) of its last dimension; elements are taken from
the median plus 1.5 times the interquartile range. Differs: quartiles are exact at every size, where
mergekit samples a million elements, and the divergence is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, RowBlock, TensorBlocks

__all__ = ["ArceeFusion"]

_QUARTILES = (0.25, 0.5, 0.75)


class ArceeFusion(MergeMethod):
    """Every element equals that of the model or of the base, bit for bit."""

    paper: ClassVar[str] = ""
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    max_models: ClassVar[int] = 1

    fence: float = Field(
        1.5, ge=0, description="importance threshold in interquartile ranges above the median"
    )

    @override
    def measure(self, blocks: TensorBlocks) -> dict[str, Any]:
        """Return the divergence of every row, and the importance threshold."""
        if not blocks.size:
            return {"limit": 0.0, "divergence": None}
        divergence = _divergences(blocks)
        low, middle, high = _quartiles(blocks, divergence)
        return {"limit": middle + self.fence * (high - low), "divergence": divergence}

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: dict[str, Any],
        context: BlockContext,
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.task_vectors import task_vectors

        base, _ = task_vectors(base, (), "arcee_fusion")
        (model,) = parents
        is_important = (
            _importance(base, model, measured["divergence"], context) >= measured["limit"]
        )
        merged: Array = np.where(is_important, model, base)
        return merged


def _divergences(blocks: TensorBlocks) -> Array:
    """Return KL(softmax(model) || softmax(base)) over the last dimension, (..., 1), float64."""
    import numpy as np

    from stillroom.merge.tensors.task_vectors import task_vectors

    def pair(block: RowBlock) -> tuple[Array, Array]:
        base, _ = task_vectors(block.base, (), "arcee_fusion")
        return base.astype(np.float64), block.parents[0].astype(np.float64)

    if len(blocks.context.shape) < 2:
        # A single vector, small enough for memory.
        pairs = blocks.each(pair)
        base, model = (
            np.concatenate([part.reshape(-1) for part in column])
            for column in zip(*pairs, strict=True)
        )
        return _divergence(base, model)
    return np.concatenate(blocks.each(lambda block: _divergence(*pair(block))))


def _divergence(base: Array, model: Array) -> Array:
    import numpy as np

    old, new = (array - array.max(axis=-1, keepdims=True) for array in (base, model))
    weights = np.exp(new)
    mass = weights.sum(axis=-1, keepdims=True)
    weights *= new - old
    gain = weights.sum(axis=-1, keepdims=True) / mass
    divergence = gain - np.log(mass) + np.log(np.exp(old).sum(axis=-1, keepdims=True))
    return np.asarray(np.maximum(divergence, 0))


def _importance(base: Array, model: Array, divergence: Array, context: BlockContext) -> Array:
    """Return |difference| times divergence in float32, the type used for ranking."""
    import numpy as np

    if len(context.shape) > 1:
        first = context.offset // max(1, int(np.prod(context.shape[1:])))
        divergence = divergence[first : first + len(base)]
    gap = np.abs(model - base)
    return np.asarray(gap * divergence.reshape(divergence.shape if gap.ndim else ()), np.float32)


def _quartiles(blocks: TensorBlocks, divergence: Array) -> list[float]:
    """Return the exact quartiles of importance; between two elements, the lower one.

    Found by counting magnitudes, so that no more than a block is in memory.
    """
    import numpy as np

    from stillroom.merge.tensors.task_vectors import task_vectors
    from stillroom.merge.tensors.trimming import find_thresholds_by_count

    def importance(block: RowBlock) -> list[Array]:
        base, _ = task_vectors(block.base, (), "arcee_fusion")
        return [_importance(base, block.parents[0], divergence, block.context)] * 3

    ranks = [int(part * (blocks.size - 1)) for part in _QUARTILES]
    thresholds = find_thresholds_by_count(
        [blocks], importance, [blocks.size - rank for rank in ranks]
    )
    quartiles = [
        float(np.int32(threshold.bits).view(np.float32)) if threshold else -1.0
        for threshold in thresholds
    ]
    if -1.0 in quartiles:  # so few elements that the smallest is a quartile
        least = min(float(importance(block)[0].min()) for block in blocks)
        quartiles = [least if value < 0 else value for value in quartiles]
    return quartiles
