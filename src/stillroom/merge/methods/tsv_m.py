"""TSV-M: keep each model's strongest singular directions, and orthogonalize them.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (Task Singular Vectors, merging): each of N models
keeps 1/N of its singular triplets; the stacked directions are replaced by their polar factor.
Embeddings, output heads and tensors that are not matrices are averaged. Differs: directions missing
in the stack, as for equal models, stay zero instead of being arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from stillroom.merge.families import MatrixMethod
from stillroom.merge.interfaces import Array

__all__ = ["TsvM"]


class TsvM(MatrixMethod):
    """N + 2 singular value decompositions per matrix, with the whole tensor in memory."""

    paper: ClassVar[str] = "arXiv:2412.00081"
    decomposes: ClassVar[bool] = True

    @override
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import decompose, orthogonalize

        rank = max(1, min(vectors[0].shape) // len(vectors))
        left_vectors, values, right_vectors = [], [], []
        for vector in vectors:
            u, singular_values, v = decompose(vector)
            # Directions with a singular value of zero must not displace others.
            live = singular_values[:rank] > 0
            left_vectors.append(u[:, :rank] * live)
            values.append(singular_values[:rank])
            right_vectors.append(v[:rank] * live[:, np.newaxis])
        stacked = orthogonalize(np.concatenate(left_vectors, axis=1))
        merged: Array = (stacked * np.concatenate(values)) @ orthogonalize(
            np.concatenate(right_vectors)
        )
        return merged
