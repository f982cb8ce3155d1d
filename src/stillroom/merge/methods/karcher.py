"""Karcher mean: the point on the sphere nearest to all models, as long as they are on average.

Source: Wang et al. 2026, arXiv:2603.04972, the fixed-point iteration on the sphere that stands in
for the Fisher-Rao manifold. Differs: it runs on one coefficient a model instead of on tensors, so
it may go on until it stands still; models of length zero count in the length only.
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
    """Of two models of one length it is slerp at one half; a base is not used."""

    paper: ClassVar[str] = "arXiv:2603.04972"
    replicates: ClassVar[bool] = True

    max_iter: int = Field(100, ge=0, le=10_000, description="most steps of the iteration")
    tol: float = Field(1e-10, ge=0, description="ends where a step is shorter than this")

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
        shares = normalize_weights(blocks.at.weights, "karcher")
        return karcher_coefficients(gram, shares, self.max_iter, self.tol)

    @override
    def combine(
        self,
        base: Array | None,
        parents: Sequence[Array],
        measured: MixCoefficients,
        at: BlockContext,
    ) -> Array:
        from stillroom.merge.tensors.linear_algebra import combine_parents

        return combine_parents(None, parents, measured)

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: BlockContext
    ) -> torch.Tensor:
        """See ``MergeMethod.replicate``; weights are not used, and a base is averaged in, last.

        So does mergekit with a base that is not among its models. One that is belongs into
        ``parents`` at its place, with ``base`` None, or it would count twice.
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


def _fixed_point(units: Sequence[torch.Tensor], most: int, tolerance: float) -> torch.Tensor:
    import torch

    share = 1 / len(units)
    point = torch.zeros_like(units[0])
    for unit in units:
        point = point + share * unit
    size = torch.linalg.norm(point.float())
    point = point / size if float(size) > 1e-7 else units[0].clone()
    for _ in range(most):
        tangent = torch.zeros_like(point)
        for unit in units:
            turned = torch.clamp(torch.dot(point.reshape(-1), unit.reshape(-1)), -1, 1)
            angle = torch.arccos(turned)
            if float(angle) >= tolerance:
                factor = share * (angle / torch.sin(angle))
                tangent = tangent + factor * (unit - turned * point)
        size = torch.linalg.norm(tangent.float())
        if float(size) < tolerance:
            break
        point = torch.cos(size) * point + torch.sin(size) * (tangent / size)
        point = point / torch.linalg.norm(point.float())
    return point
