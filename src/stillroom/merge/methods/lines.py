"""LiNeS: task vectors scaled linearly with depth, so that the first layers stay near the base.

Source: Wang et al. 2024, arXiv:2410.17146: layer l of L is scaled by alpha + beta (l-1)/(L-1), with
defaults for a single model; to merge N, the paper sets alpha to 1 / N and searches beta. Differs:
tensors outside the layers (embeddings, last norm, head) get alpha, or ``outside``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Lines"]


class Lines(MergeMethod):
    """Task arithmetic with a layer-dependent scale."""

    paper: ClassVar[str] = "arXiv:2410.17146"
    needs_base: ClassVar[bool] = True

    alpha: float = Field(0.5, description="multiplier of task vectors in the first layer")
    beta: float = Field(
        0.5, description="increase of the multiplier from the first to the last layer"
    )
    outside: float | None = Field(
        None, description="multiplier outside the layers; default that of the first layer"
    )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import task_vectors, weighted_sum

        base, vectors = task_vectors(base, parents, "lines")
        merged = weighted_sum(vectors, context.weights)
        merged *= merged.dtype.type(self._scale(context.layer))
        return base + merged

    def _scale(self, layer: float | None) -> float:
        if layer is None:
            return self.alpha if self.outside is None else self.outside
        return self.alpha + self.beta * layer
