"""Base classes of method families: pruning of task vectors (DARE, DELLA, Breadcrumbs), and SVD.

A pruning (at random, by rank, by magnitude) is followed by the weighted sum of task arithmetic or
by the sign election of TIES (Yadav et al. 2023, arXiv:2306.01708). Method modules choose the
combination and its defaults.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, PerModel, TensorBlocks

__all__ = ["BreadcrumbsMethod", "DareMethod", "DellaMethod", "MatrixMethod", "PruningMethod"]


class PruningMethod(MergeMethod):
    """Prune task vectors, then sum them, or (``votes``) average them after sign election."""

    needs_base: ClassVar[bool] = True
    votes: ClassVar[bool] = False

    density: PerModel[float] = Field(0.5, ge=0, le=1, description="share of each task vector kept")
    scale: float = Field(1.0, description="multiplier of the merged task vector (lambda)")
    normalize: bool = Field(
        False, description="divide the sum by the weights of the summed elements; off: plain sum"
    )

    @abstractmethod
    def prune(self, vectors: Sequence[Array], measured: Any, context: BlockContext) -> list[Array]:
        """Return the vectors of one block with dropped elements set to zero."""

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import (
            combine_weighted,
            disjoint_mean,
            elect_sign,
            rescale,
            task_vectors,
        )

        base, vectors = task_vectors(base, parents, self.method_name())
        pruned = self.prune(vectors, measured, context)
        if self.votes:
            sign = elect_sign(pruned, context.weights)
            merged = disjoint_mean(pruned, sign, context.weights, normalize=self.normalize)
        else:
            merged = combine_weighted(pruned, context.weights, normalize=self.normalize)
        return base + rescale(merged, self.scale)


class DareMethod(PruningMethod):
    """Pruning of DARE: each element is kept with the same probability."""

    rescale: bool = Field(True, description="divide kept elements by the density")

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, context: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import random_sparsify

        return random_sparsify(
            vectors, context.values("density", self.density), context, rescale=self.rescale
        )


class DellaMethod(PruningMethod):
    """Pruning of DELLA: larger elements of a row are kept with higher probability."""

    epsilon: PerModel[float] = Field(
        0.15,
        ge=0,
        le=0.5,
        description="distance of the keep probability of a row's smallest and largest element "
        "from density; without effect at a density of 0 or 1",
    )
    rescale: bool = Field(True, description="divide kept elements by their probability")

    @override
    def measure(self, blocks: TensorBlocks) -> list[list[float]] | None:
        """Return the rescale factors of a tensor with a single row."""
        from stillroom.merge.tensors.task_vectors import measure_single_row

        windows = self.probability_windows(blocks.context)
        return measure_single_row(blocks, self.method_name(), windows, rescale=self.rescale)

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, context: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import magprune

        return magprune(
            list(vectors),
            self.probability_windows(context),
            measured,
            context,
            rescale=self.rescale,
        )

    def probability_windows(
        self, context: BlockContext, *, below_one: bool = False
    ) -> list[tuple[float, float]]:
        """Return density and epsilon of each model; raise if a probability is out of range.

        Args:
            context: The tensor.
            below_one: Refuse a largest probability of exactly 1 too, as mergekit does.
        """
        from stillroom.merge.tensors.task_vectors import find_probability_window

        densities = context.values("density", self.density)
        return [
            find_probability_window(density, epsilon, below_one=below_one)
            for density, epsilon in zip(
                densities, context.values("epsilon", self.epsilon), strict=True
            )
        ]


class BreadcrumbsMethod(PruningMethod):
    """Pruning of Breadcrumbs: the largest elements of a tensor are dropped, and the small ones."""

    density: PerModel[float] = Field(0.15, ge=0, le=1, description="share of each task vector kept")
    gamma: PerModel[float] = Field(
        0.01, ge=0, le=1, description="share of the largest elements to drop"
    )
    rescale: bool = Field(
        False, description="rescale kept elements so that each tensor keeps its L1 norm"
    )

    @override
    def measure(self, blocks: TensorBlocks) -> tuple[list[Any], list[float]]:
        """Return two thresholds per model (lower, upper), and a factor each."""
        from stillroom.merge.tensors.trimming import find_bands, l1_rescale_factors, trim_to_band

        name = self.method_name()
        densities = blocks.context.values("density", self.density)
        gammas = blocks.context.values("gamma", self.gamma)
        bands = find_bands(blocks, name, densities, gammas)
        if not self.rescale:
            return bands, [1.0] * len(bands)

        def keep(number: int, vector: Array, context: BlockContext) -> Array:
            return trim_to_band(vector, bands[number], context)

        return bands, l1_rescale_factors(blocks, name, keep)

    @override
    def prune(self, vectors: Sequence[Array], measured: Any, context: BlockContext) -> list[Array]:
        from stillroom.merge.tensors.task_vectors import rescale
        from stillroom.merge.tensors.trimming import trim_to_band

        return [
            rescale(trim_to_band(vector, band, context), factor)
            for vector, band, factor in zip(vectors, *measured, strict=True)
        ]


class MatrixMethod(MergeMethod):
    """Merge matrices whole, and average all other tensors in blocks, as the papers' code does."""

    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    scale: float = Field(1.0, description="multiplier of the merged task vector (alpha)")
    embeddings: Literal["mean", "matrix"] = Field(
        "mean", description="how to merge embeddings and output heads"
    )

    @abstractmethod
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        """Return the merged task vector (rows, columns) in a new array."""

    @override
    def needs_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        from stillroom.merge.tensors.linear_algebra import is_matrix

        return is_matrix(name, shape, embeddings=self.embeddings == "matrix")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import plain_mean
        from stillroom.merge.tensors.task_vectors import task_vectors

        base, vectors = task_vectors(base, parents, self.method_name())
        is_matrix = self.needs_whole(context.name, context.shape)
        # LAPACK does not terminate on infinities; a mean passes them on to the finite check.
        is_finite = all(bool(np.isfinite(vector).all()) for vector in vectors)
        merged = self.merge_matrices(vectors) if is_matrix and is_finite else plain_mean(vectors)
        merged *= merged.dtype.type(self.scale)
        return base + merged
