"""TSV-M: keep each model's strongest singular directions, and make them orthogonal to each other.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (Task Singular Vectors, merging): of N models each
keeps 1/N of its singular triplets; the stacked directions are replaced by their polar factor.
Embeddings, output heads and tensors that are not matrices are averaged. Differs: directions that
the stack does not have, as when models are equal, stay zero instead of being made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from stillroom.merge.families import MatrixMethod
from stillroom.merge.interfaces import Array

__all__ = ["TsvM"]


class TsvM(MatrixMethod):
    """Costs N + 2 singular value decompositions a matrix; a tensor is in memory whole."""

    paper: ClassVar[str] = "arXiv:2412.00081"
    decomposes: ClassVar[bool] = True

    @override
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import decompose, orthogonalize, reconstruct

        kept = max(1, min(vectors[0].shape) // len(vectors))
        left, values, right = [], [], []
        for vector in vectors:
            one, middle, other = decompose(vector)
            # Directions of no length are none: they must not push the others aside.
            live = middle[:kept] > 0
            left.append(one[:, :kept] * live)
            values.append(middle[:kept])
            right.append(other[:kept] * live[:, np.newaxis])
        stacked = orthogonalize(np.concatenate(left, axis=1))
        return reconstruct(stacked, np.concatenate(values), orthogonalize(np.concatenate(right)))
