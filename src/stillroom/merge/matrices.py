"""Methods that merge task vectors as matrices, by their singular directions: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, MergeMethod, Place

__all__ = ["MatrixMethod"]


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
        from stillroom.merge.spectral import is_matrix

        return is_matrix(name, shape, embeddings=self.embeddings == "matrix")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        import numpy as np

        from stillroom.merge.arithmetic import task_vectors
        from stillroom.merge.spectral import mean_of

        base, vectors = task_vectors(base, parents, self.method_name())
        is_matrix = self.needs_whole(at.name, at.shape)
        # LAPACK does not end on infinities; a mean hands them on to whoever looks for them.
        is_finite = all(bool(np.isfinite(vector).all()) for vector in vectors)
        merged = self.merge_matrices(vectors) if is_matrix and is_finite else mean_of(vectors)
        merged *= merged.dtype.type(self.scale)
        return base + merged
