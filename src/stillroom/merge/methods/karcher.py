"""Karcher mean: the point on the sphere nearest to all models, at their mean length.

Source: Wang et al. 2026, arXiv:2603.04972, the fixed-point iteration on the sphere that
approximates the Fisher-Rao manifold. Differs: it iterates on one coefficient per model instead of
on tensors, so it can run until convergence; models of length zero only count in the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, TensorBlocks

if TYPE_CHECKING:
    import torch

    from stillroom.merge.tensors.linear_algebra import MixCoefficients

__all__ = ["Karcher"]


class Karcher(MergeMethod):
    """For two models of equal length it is slerp at 0.5; a base is not used."""

    paper: ClassVar[str] = "arXiv:2603.04972"
    replicates: ClassVar[bool] = True

    max_iter: int = Field(100, ge=0, le=10_000, description="maximum number of iterations")
    tol: float = Field(1e-10, ge=0, description="stop when a step is shorter than this")

    @override
    def check(self, weights: Sequence[float]) -> None:
        from stillroom.merge.tensors.linear_algebra import normalize_weights

        super().check(weights)
        normalize_weights(weights, "karcher")

    @override
    def measure(self, blocks: TensorBlocks) -> MixCoefficients:
        """Return the coefficients of this tensor."""
        from stillroom.merge.tensors.linear_algebra import karcher_coefficients, normalize_weights
        from stillroom.merge.tensors.task_vectors import gram_matrix

        gram = gram_matrix(blocks, lambda block: block.parents)
        shares = normalize_weights(blocks.context.weights, "karcher")
        return karcher_coefficients(gram, shares, self.max_iter, self.tol)

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: MixCoefficients,
        context: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.linear_algebra import combine_parents

        return combine_parents(None, parents, measured)

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], context: BlockContext
    ) -> torch.Tensor:
        """See ``MergeMethod.replicate``; weights are not used, and a base is averaged in, last.

        mergekit does the same with a base that is not among its models. If it is among them, pass
        it in ``parents`` and ``base`` as None, or it would count twice.
        """
        import torch

        inputs = [*parents, *([] if base is None else [base])]
        lengths = [torch.linalg.norm(tensor.float()) for tensor in inputs]
        units = [
            tensor / length
            for tensor, length in zip(inputs, lengths, strict=True)
            if float(length) > 1e-7
        ]
        if not units:
            return torch.zeros_like(parents[0])
        point = _fixed_point(units, self.max_iter, self.tol)
        length = sum(((1 / len(inputs)) * length for length in lengths), torch.zeros(()))
        return length * point


def _fixed_point(units: Sequence[torch.Tensor], max_steps: int, tolerance: float) -> torch.Tensor:
    import torch

    share = 1 / len(units)
    point = torch.zeros_like(units[0])
    for unit in units:
        point = point + share * unit
    size = torch.linalg.norm(point.float())
    point = point / size if float(size) > 1e-7 else units[0].clone()
    for _ in range(max_steps):
        tangent = torch.zeros_like(point)
        for unit in units:
            cosine = torch.clamp(torch.dot(point.reshape(-1), unit.reshape(-1)), -1, 1)
            angle = torch.arccos(cosine)
            if float(angle) >= tolerance:
                factor = share * (angle / torch.sin(angle))
                tangent = tangent + factor * (unit - cosine * point)
        size = torch.linalg.norm(tangent.float())
        if float(size) < tolerance:
            break
        point = torch.cos(size) * point + torch.sin(size) * (tangent / size)
        point = point / torch.linalg.norm(point.float())
    return point
