"""TIES: trim small changes, elect a sign, average the agreeing elements.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1. Differs from the paper: a tied vote elects
+, models may have weights, and of equal magnitudes at the threshold the first ones (by tensor name
and element) are kept, so that the share kept is exact. The steps are ``merge.tensors``'
``trimming.trim``, ``task_vectors.elect_sign`` and ``task_vectors.disjoint_mean``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.families import PruningMethod
from stillroom.merge.interfaces import Array, BlockContext, PerModel, RowBlock, TensorBlocks

if TYPE_CHECKING:
    from stillroom.merge.tensors.trimming import TrimThreshold

__all__ = ["Ties"]


class Ties(PruningMethod):
    """Trims over the whole model, as in the paper, or within each tensor."""

    paper: ClassVar[str] = "arXiv:2306.01708"
    votes: ClassVar[bool] = True

    survey_ignores: ClassVar[tuple[str, ...] | None] = ("scale", "normalize", "rescale")

    density: PerModel[float] = Field(
        0.2, ge=0, le=1, description="share of each task vector kept, by magnitude"
    )
    trim: Literal["model", "tensor"] = Field(
        "model", description="rank magnitudes over the whole model, or by tensor"
    )
    normalize: bool = Field(True, description="average the agreeing elements; off: sum them")
    rescale: bool = Field(
        False, description="rescale kept elements so that each tensor keeps its L1 norm"
    )

    @override
    def survey(self, tensors: Sequence[TensorBlocks]) -> list[TrimThreshold | None] | None:
        """Return one threshold per model over all tensors."""
        return self._thresholds(tensors) if self.trim == "model" and tensors else None

    @override
    def measure(self, blocks: TensorBlocks) -> tuple[list[TrimThreshold | None], list[float]]:
        """Return one threshold per model, of the model or of this tensor, and rescale factors."""
        thresholds = (
            blocks.context.global_statistics if self.trim == "model" else self._thresholds([blocks])
        )
        if not self.rescale:
            return thresholds, [1.0] * len(thresholds)
        from stillroom.merge.tensors.trimming import l1_rescale_factors, trim

        def keep(number: int, vector: Array, context: BlockContext) -> Array:
            return trim(vector, thresholds[number], context)

        return thresholds, l1_rescale_factors(blocks, "ties", keep)

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, context: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import rescale
        from stillroom.merge.tensors.trimming import trim

        return [
            rescale(trim(vector, threshold, context), factor)
            for vector, threshold, factor in zip(vectors, *measured, strict=True)
        ]

    def _thresholds(self, tensors: Sequence[TensorBlocks]) -> list[TrimThreshold | None]:
        from stillroom.merge.tensors.task_vectors import task_vectors
        from stillroom.merge.tensors.trimming import find_thresholds

        def vectors_of(block: RowBlock) -> list[Array]:
            return task_vectors(block.base, block.parents, "ties")[1]

        densities = tensors[0].context.values("density", self.density)
        return find_thresholds(tensors, vectors_of, densities)
