"""Task arithmetic: the base plus the weighted task vectors.

Source: Ilharco et al. 2022, arXiv:2212.04089. A negative weight takes a task away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, MergeMethod, Place

if TYPE_CHECKING:
    import torch

    from stillroom.merge.retracing import CastBlocks, Draws

__all__ = ["TaskArithmetic"]


class TaskArithmetic(MergeMethod):
    """Sums differences from the base; models that equal the base change nothing."""

    paper: ClassVar[str] = "arXiv:2212.04089"
    needs_base: ClassVar[bool] = True
    replicates: ClassVar[bool] = True

    scale: float = Field(1.0, description="multiplier of the sum of task vectors (lambda)")
    normalize: bool = Field(False, description="divide the sum by that of the weights")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        from stillroom.merge.arithmetic import task_vectors, weigh

        base, vectors = task_vectors(base, parents, "task_arithmetic")
        return base + self.scale * weigh(vectors, at.weights, normalize=self.normalize)

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: Place
    ) -> torch.Tensor:
        from stillroom.merge.replicas import combine, subtract

        base, vectors = subtract(base, parents, "task_arithmetic")
        return combine(
            base, vectors, at.weights, votes=False, normalize=self.normalize, scale=self.scale
        )

    @override
    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        from stillroom.merge.retracing import MOST_ADDED

        return parents <= MOST_ADDED

    @override
    def retrace(self, blocks: CastBlocks, draws: Draws) -> Callable[[int], Array]:
        from stillroom.merge.retracing import add_up, vector

        def combine(number: int) -> Array:
            block = blocks[number]
            vectors = [vector(block, at, blocks.kind) for at in range(len(block.parents))]
            return add_up(
                block,
                vectors,
                blocks.kind,
                votes=False,
                normalize=self.normalize,
                scale=self.scale,
            )

        return combine
