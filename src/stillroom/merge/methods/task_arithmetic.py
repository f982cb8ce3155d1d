"""Task arithmetic: the base plus the weighted task vectors.

Source: Ilharco et al. 2022, arXiv:2212.04089. A negative weight removes a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["TaskArithmetic"]


class TaskArithmetic(MergeMethod):
    """Sums differences from the base; models equal to the base have no effect."""

    paper: ClassVar[str] = "arXiv:2212.04089"
    needs_base: ClassVar[bool] = True

    scale: float = Field(1.0, description="multiplier of the sum of task vectors (lambda)")
    normalize: bool = Field(False, description="divide by the sum of the weights")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import combine_weighted, task_vectors

        base, vectors = task_vectors(base, parents, "task_arithmetic")
        return base + self.scale * combine_weighted(
            vectors, context.weights, normalize=self.normalize
        )
