"""EMR: elect one task vector for all models; mask and rescale it for one of them.

Source: Huang et al. 2024, arXiv:2405.17461 (EMR-Merging): per element, the sign of the sum and the
largest magnitude with that sign; for a task, the elements with the task vector's sign, times
|delta| / |masked| over the whole model. The paper applies mask and scale at inference; here
``task`` chooses one model, and without it the elected vector is merged unchanged. Tensors for which
a recipe chooses a different model are scaled separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, RowBlock, TensorBlocks

__all__ = ["Emr"]


class Emr(MergeMethod):
    """A sum of zero elects +."""

    paper: ClassVar[str] = "arXiv:2405.17461"
    needs_base: ClassVar[bool] = True
    is_ordered: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    task: int | None = Field(
        None, ge=0, description="index of the model, from 0, to mask and rescale for"
    )
    rescale: Literal["model", "tensor", "off"] = Field(
        "model", description="match its magnitude over the whole model, by tensor, or not"
    )
    scale: float = Field(1.0, description="multiplier of the merged task vector")

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.task is not None and self.task >= len(weights):
            raise RecipeError(
                f"model {self.task} does not exist: {len(weights)} are merged",
                code="merge.task",
                where="method.task",
                expected=f"0 to {len(weights) - 1}, in the order of models",
                next="change it, or omit it to merge the elected vector",
            )

    @override
    def survey(self, tensors: Sequence[TensorBlocks]) -> dict[str, float] | None:
        """Return the chosen model, and its scale over all tensors."""
        if self.task is None or self.rescale != "model" or not tensors:
            return None
        return {"task": self.task, "ratio": _ratio([self._masses(blocks) for blocks in tensors])}

    @override
    def measure(self, blocks: TensorBlocks) -> float:
        """Return the chosen model's scale: from ``survey``, if computed for this model."""
        if self.task is None or self.rescale == "off":
            return 1.0
        global_statistics = blocks.context.global_statistics
        if self.rescale == "model" and global_statistics and global_statistics["task"] == self.task:
            return float(global_statistics["ratio"])
        return _ratio([self._masses(blocks)])

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: float, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import task_vectors

        base, vectors = task_vectors(base, parents, "emr")
        merged = self._serve(vectors)
        merged *= merged.dtype.type(measured * self.scale)
        return base + merged

    def _serve(self, vectors: Sequence[Array]) -> Array:
        """Return the elected vector, masked if a task is chosen."""
        elected = _elect(vectors)
        if self.task is not None:
            elected *= elected * vectors[self.task] > 0
        return elected

    def _masses(self, blocks: TensorBlocks) -> list[float]:
        """Return the L1 norms of the chosen vector, and of the masked elected one."""
        import numpy as np

        from stillroom.merge.tensors.task_vectors import exact_sum, task_vectors

        task = self.task or 0

        def masses(block: RowBlock) -> list[Array]:
            _, vectors = task_vectors(block.base, block.parents, "emr")
            return [np.abs(vectors[task]), np.abs(self._serve(vectors))]

        return exact_sum(blocks, masses) or [0.0, 0.0]


def _elect(vectors: Sequence[Array]) -> Array:
    """Return per element the largest magnitude with the sum's sign, with that sign."""
    import numpy as np

    from stillroom.merge.tensors.task_vectors import weighted_sum

    sums = weighted_sum(vectors, [1.0] * len(vectors))
    sums += 0.0  # a negative zero is a tie, too
    sign = np.copysign(sums.dtype.type(1), sums)
    elected = np.zeros_like(sums)
    for vector in vectors:
        elected = np.maximum(elected, vector * sign)
    return np.asarray(np.copysign(elected, sums))


def _ratio(masses: Sequence[Sequence[float]]) -> float:
    target, served = (math.fsum(column) for column in zip(*masses, strict=True))
    return target / served if served > 0 else 1.0
