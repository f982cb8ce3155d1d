"""Iso-C: the summed task vectors with all singular values made equal.

Source: Marczak et al. 2025, arXiv:2502.04959, the common subspace: the sum's singular vectors, each
with the mean singular value. Embeddings, output heads and tensors that are not matrices are
averaged. Differs: directions missing in the sum stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from stillroom.merge.families import MatrixMethod
from stillroom.merge.interfaces import Array

__all__ = ["IsoC"]


class IsoC(MatrixMethod):
    """One singular value decomposition per matrix, with the whole tensor in memory."""

    paper: ClassVar[str] = "arXiv:2502.04959"
    decomposes: ClassVar[bool] = True

    @override
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        from stillroom.merge.tensors.linear_algebra import decompose, orthogonalize
        from stillroom.merge.tensors.task_vectors import weighted_sum

        total = weighted_sum(vectors, [1.0] * len(vectors))
        parts = decompose(total)
        # The polar factor uses the same triplets, so one decomposition suffices.
        merged: Array = orthogonalize(total, parts) * parts[1].mean()
        return merged
