"""Iso-C: the summed task vectors, with all singular values made equal.

Source: Marczak et al. 2025, arXiv:2502.04959, the common subspace: the sum's directions, each with
the mean singular value. Embeddings, output heads and tensors that are not matrices are averaged.
Differs: directions that the sum does not have stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, MergeMethod, Place

__all__ = ["IsoC"]


class IsoC(MergeMethod):
    """Costs one singular value decomposition a matrix; a tensor is in memory whole."""

    paper: ClassVar[str] = "arXiv:2502.04959"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = True

    scale: float = Field(1.0, description="multiplier of the merged task vector (alpha)")
    embeddings: Literal["mean", "matrix"] = Field(
        "mean", description="what embeddings and output heads are merged as"
    )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        from stillroom.merge.arithmetic import task_vectors, weighted_sum
        from stillroom.merge.spectral import decompose, is_matrix, mean_of, orthogonalize

        base, vectors = task_vectors(base, parents, "iso_c")
        if is_matrix(at, vectors, embeddings=self.embeddings == "matrix"):
            total = weighted_sum(vectors, [1.0] * len(vectors))
            parts = decompose(total)
            # The polar factor is made of the same triplets, so one decomposition serves both.
            merged: Array = orthogonalize(total, parts) * parts[1].mean()
        else:
            merged = mean_of(vectors)
        merged *= merged.dtype.type(self.scale)
        return base + merged
