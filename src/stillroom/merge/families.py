"""Base classes of method families: pruned task vectors, and matrices merged by their SVD.

A pruning (at random, by rank, by magnitude) comes with two ends: the sum of task arithmetic, or the
vote of TIES (Yadav et al. 2023, arXiv:2306.01708). Both ends stand here once, and so does each
pruning that has two methods; a method's own file says which it is, and its defaults.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import (
    Array,
    BlockContext,
    MergeMethod,
    TensorBlocks,
    mergekit_unsupported_error,
)

if TYPE_CHECKING:
    import torch

    from stillroom.merge.mergekit.numpy_arithmetic import (
        CastBlocks,
        PrunedTaskVector,
        TorchGenerator,
    )

__all__ = [
    "BreadcrumbsMethod",
    "DareMethod",
    "DellaMethod",
    "MatrixMethod",
    "PruningMethod",
]


class PruningMethod(MergeMethod):
    """Prunes every task vector, then sums them (``votes`` False) or averages what a vote elects."""

    needs_base: ClassVar[bool] = True
    replicates: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("density",)
    votes: ClassVar[bool] = False

    density: float = Field(0.5, gt=0, le=1, description="share of each task vector kept")
    scale: float = Field(1.0, description="multiplier of the merged task vector (lambda)")
    normalize: bool = Field(
        False, description="divide the sum by the weights of what was added; off only sums"
    )

    @abstractmethod
    def prune(self, vectors: Sequence[Array], measured: Any, at: BlockContext) -> list[Array]:
        """Return the vectors of one block with what is dropped set to zero."""

    @abstractmethod
    def prune_whole(self, vectors: Sequence[torch.Tensor], at: BlockContext) -> list[torch.Tensor]:
        """Return whole vectors pruned as mergekit 0.1.5 does."""

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import (
            combine_weighted,
            disjoint_mean,
            elect_sign,
            task_vectors,
        )

        base, vectors = task_vectors(base, parents, self.method_name())
        kept = self.prune(vectors, measured, at)
        if self.votes:
            sign = elect_sign(kept, at.weights)
            merged = disjoint_mean(kept, sign, at.weights, normalize=self.normalize)
        else:
            merged = combine_weighted(kept, at.weights, normalize=self.normalize)
        return base + self.scale * merged

    @override
    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: BlockContext
    ) -> torch.Tensor:
        from stillroom.merge.mergekit.torch_arithmetic import add_task_vectors, compute_task_vectors

        base, vectors = compute_task_vectors(base, parents, self.method_name())
        return add_task_vectors(
            base,
            self.prune_whole(vectors, at),
            at.weights,
            votes=self.votes,
            normalize=self.normalize,
            scale=self.scale,
        )

    def prune_bits(self, blocks: CastBlocks, draws: TorchGenerator) -> list[PrunedTaskVector]:
        """Return what ``prune_whole`` leaves of every parent."""
        raise mergekit_unsupported_error(self.method_name())

    @override
    def retrace(self, blocks: CastBlocks, draws: TorchGenerator) -> Callable[[int], Array]:
        from stillroom.merge.mergekit.numpy_arithmetic import add_task_vectors, scale_block

        pruned = self.prune_bits(blocks, draws)

        def combine(number: int) -> Array:
            block = blocks.base(number)
            return add_task_vectors(
                block,
                [scale_block(each, block, blocks.kind) for each in pruned],
                blocks.kind,
                votes=self.votes,
                normalize=self.normalize,
                scale=self.scale,
            )

        return combine


class DareMethod(PruningMethod):
    """DARE's pruning: each element is kept with one probability."""

    rescale: bool = Field(True, description="divide what is kept by the density")

    @override
    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        from stillroom.merge.mergekit.numpy_arithmetic import MAX_SUMMANDS

        return parents <= MAX_SUMMANDS and (kind == "BF16" or not self.rescale)

    @override
    def prune_bits(self, blocks: CastBlocks, draws: TorchGenerator) -> list[PrunedTaskVector]:
        from stillroom.merge.mergekit.numpy_arithmetic import drop_at_random

        densities = blocks.at.values("density", self.density)
        return drop_at_random(blocks, densities, draws, rescale=self.rescale)

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, at: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import random_sparsify

        return random_sparsify(
            vectors, at.values("density", self.density), at, rescale=self.rescale
        )

    @override
    def prune_whole(self, vectors: Sequence[torch.Tensor], at: BlockContext) -> list[torch.Tensor]:
        from stillroom.merge.mergekit.torch_arithmetic import drop_at_random

        return [
            drop_at_random(vector, density, rescale=self.rescale)
            for vector, density in zip(vectors, at.values("density", self.density), strict=True)
        ]


class DellaMethod(PruningMethod):
    """DELLA's pruning: the larger of a row are likelier to be kept."""

    per_model: ClassVar[tuple[str, ...]] = ("density", "epsilon")

    epsilon: float = Field(
        0.15, ge=0, lt=0.5, description="how far from it the smallest and largest of a row are"
    )
    rescale: bool = Field(True, description="divide what is kept by its probability")

    @override
    def measure(self, blocks: TensorBlocks) -> list[list[float]] | None:
        """Return what to multiply the elements of a tensor of one row with."""
        from stillroom.merge.tensors.task_vectors import measure_single_row

        windows = self._windows(blocks.at)
        return measure_single_row(blocks, self.method_name(), windows, rescale=self.rescale)

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, at: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import prune_by_rank

        return prune_by_rank(list(vectors), self._windows(at), measured, at, rescale=self.rescale)

    @override
    def prune_whole(self, vectors: Sequence[torch.Tensor], at: BlockContext) -> list[torch.Tensor]:
        from stillroom.merge.mergekit.torch_arithmetic import drop_by_rank

        return [
            drop_by_rank(vector, *window, rescale=self.rescale)
            for vector, window in zip(vectors, self._windows(at), strict=True)
        ]

    @override
    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        from stillroom.merge.mergekit.numpy_arithmetic import MAX_SUMMANDS

        is_rows = 1 <= len(shape) <= 2 and shape[-1] > 1
        return parents <= MAX_SUMMANDS and kind == "BF16" and is_rows

    @override
    def prune_bits(self, blocks: CastBlocks, draws: TorchGenerator) -> list[PrunedTaskVector]:
        from stillroom.merge.mergekit.numpy_arithmetic import drop_by_rank

        return drop_by_rank(blocks, self._windows(blocks.at), draws, rescale=self.rescale)

    def _windows(self, at: BlockContext) -> list[tuple[float, float]]:
        """Return density and epsilon of each model; probabilities outside 0 to 1 are refused."""
        from stillroom.merge.tensors.task_vectors import check_probability_window

        densities = at.values("density", self.density)
        windows = list(zip(densities, at.values("epsilon", self.epsilon), strict=True))
        for density, epsilon in windows:
            if density - epsilon < 0 or density + epsilon > 1:
                check_probability_window(density, epsilon)
        return windows


class BreadcrumbsMethod(PruningMethod):
    """Breadcrumbs' pruning: the largest of a tensor are dropped, and the small ones."""

    per_model: ClassVar[tuple[str, ...]] = ("density", "gamma")

    density: float = Field(0.15, ge=0, le=1, description="share of each task vector kept")
    gamma: float = Field(0.01, ge=0, le=1, description="share of the largest that is dropped")
    rescale: bool = Field(
        False, description="multiply what is kept so that each tensor keeps its L1 norm"
    )

    @override
    def measure(self, blocks: TensorBlocks) -> tuple[list[Any], list[float]]:
        """Return two cuts a model, above the small and above the outliers, and a factor each."""
        from stillroom.merge.tensors.trimming import find_bands, l1_rescale_factors, trim_to_band

        name = self.method_name()
        densities = blocks.at.values("density", self.density)
        gammas = blocks.at.values("gamma", self.gamma)
        bands = find_bands(blocks, name, densities, gammas)
        if not self.rescale:
            return bands, [1.0] * len(bands)

        def keep(number: int, vector: Array, at: BlockContext) -> Array:
            return trim_to_band(vector, bands[number], at)

        return bands, l1_rescale_factors(blocks, name, keep)

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, at: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import rescale
        from stillroom.merge.tensors.trimming import trim_to_band

        return [
            rescale(trim_to_band(vector, band, at), factor)
            for vector, band, factor in zip(vectors, *measured, strict=True)
        ]

    @override
    def prune_whole(self, vectors: Sequence[torch.Tensor], at: BlockContext) -> list[torch.Tensor]:
        from stillroom.merge.mergekit.torch_arithmetic import keep_middle

        densities, gammas = at.values("density", self.density), at.values("gamma", self.gamma)
        return [
            keep_middle(vector, density, gamma, rescale=self.rescale)
            for vector, density, gamma in zip(vectors, densities, gammas, strict=True)
        ]


class MatrixMethod(MergeMethod):
    """Merges matrices whole and averages all else, block by block, as the papers' code does."""

    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    scale: float = Field(1.0, description="multiplier of the merged task vector (alpha)")
    embeddings: Literal["mean", "matrix"] = Field(
        "mean", description="what embeddings and output heads are merged as"
    )

    @abstractmethod
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        """Return one task vector of several, (rows, columns), freshly made."""

    @override
    def needs_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        from stillroom.merge.tensors.linear_algebra import is_matrix

        return is_matrix(name, shape, embeddings=self.embeddings == "matrix")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import plain_mean
        from stillroom.merge.tensors.task_vectors import task_vectors

        base, vectors = task_vectors(base, parents, self.method_name())
        is_matrix = self.needs_whole(at.name, at.shape)
        # LAPACK does not end on infinities; a mean hands them on to whoever looks for them.
        is_finite = all(bool(np.isfinite(vector).all()) for vector in vectors)
        merged = self.merge_matrices(vectors) if is_matrix and is_finite else plain_mean(vectors)
        merged *= merged.dtype.type(self.scale)
        return base + merged
