"""Iso-CTS: as Iso-C, with the weakest common directions replaced by task-specific ones.

Source: Marczak et al. 2025, arXiv:2502.04959, Algorithm 2: the strongest directions of the sum,
then those of each model orthogonal to them, orthogonalized together, with the mean singular value.
Embeddings, output heads and tensors that are not matrices are averaged. Differs: missing directions
stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.families import MatrixMethod
from stillroom.merge.interfaces import Array

__all__ = ["IsoCts"]


class IsoCts(MatrixMethod):
    """N + 3 singular value decompositions per matrix, with the whole tensor in memory."""

    paper: ClassVar[str] = "arXiv:2502.04959"
    decomposes: ClassVar[bool] = True

    common: float = Field(0.8, ge=0, le=1, description="share of the directions taken from the sum")

    @override
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import decompose, orthogonalize
        from stillroom.merge.tensors.task_vectors import weighted_sum

        rank = min(vectors[0].shape)
        specific = (rank - int(self.common * rank)) // len(vectors)
        shared = rank - specific * len(vectors)
        u, values, v = decompose(weighted_sum(vectors, [1.0] * len(vectors)))
        live = values[:shared] > 0
        left_vectors, right_vectors = [u[:, :shared] * live], [v[:shared] * live[:, np.newaxis]]
        lengths = [values[:shared]]
        for vector in vectors if specific else ():
            residual = vector - left_vectors[0] @ (left_vectors[0].T @ vector)
            u, values, v = decompose(residual)
            live = values[:specific] > 0
            left_vectors.append(u[:, :specific] * live)
            right_vectors.append(v[:specific] * live[:, np.newaxis])
            lengths.append(values[:specific])
        mean = np.concatenate(lengths).mean()
        stacked = orthogonalize(np.concatenate(left_vectors, axis=1))
        merged: Array = stacked @ orthogonalize(np.concatenate(right_vectors)) * mean
        return merged
