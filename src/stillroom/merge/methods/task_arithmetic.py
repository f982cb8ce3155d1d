"""Task arithmetic: the base plus the weighted task vectors.

Source: Ilharco et al. 2022, arXiv:2212.04089. A negative weight removes a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

if TYPE_CHECKING:
    import torch

    from stillroom.merge.mergekit.numpy_arithmetic import CastBlocks, TorchGenerator

__all__ = ["TaskArithmetic"]


class TaskArithmetic(MergeMethod):
    """Sums differences from the base; models equal to the base have no effect."""

    paper: ClassVar[str] = "arXiv:2212.04089"
    needs_base: ClassVar[bool] = True
    replicates: ClassVar[bool] = True

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

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], context: BlockContext
    ) -> torch.Tensor:
        from stillroom.merge.mergekit.torch_arithmetic import add_task_vectors, compute_task_vectors

        base, vectors = compute_task_vectors(base, parents, "task_arithmetic")
        return add_task_vectors(
            base, vectors, context.weights, votes=False, normalize=self.normalize, scale=self.scale
        )

    @override
    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        from stillroom.merge.mergekit.numpy_arithmetic import MAX_SUMMANDS

        return parents <= MAX_SUMMANDS

    @override
    def retrace(self, blocks: CastBlocks, draws: TorchGenerator) -> Callable[[int], Array]:
        from stillroom.merge.mergekit.numpy_arithmetic import add_task_vectors, compute_task_vector

        def combine(number: int) -> Array:
            block = blocks[number]
            vectors = [
                compute_task_vector(block, parent, blocks.kind)
                for parent in range(len(block.parents))
            ]
            return add_task_vectors(
                block,
                vectors,
                blocks.kind,
                votes=False,
                normalize=self.normalize,
                scale=self.scale,
            )

        return combine
