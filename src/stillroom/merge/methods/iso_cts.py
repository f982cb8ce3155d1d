"""Iso-CTS: as Iso-C, with the weakest common directions replaced by each model's own.

Source: Marczak et al. 2025, arXiv:2502.04959, Algorithm 2: the strongest directions of the sum,
then of each model what is orthogonal to them, all made orthogonal and given the mean singular
value. Embeddings, output heads and tensors that are not matrices are averaged. Differs: directions
that there are none of stay zero.
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
    """Costs N + 3 singular value decompositions a matrix; a tensor is in memory whole."""

    paper: ClassVar[str] = "arXiv:2502.04959"
    decomposes: ClassVar[bool] = True

    common: float = Field(
        0.8, ge=0, le=1, description="share of the directions that come from the sum"
    )

    @override
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        import numpy as np

        from stillroom.merge.tensors.linear_algebra import decompose, orthogonalize
        from stillroom.merge.tensors.task_vectors import weighted_sum

        rank = min(vectors[0].shape)
        own = (rank - int(self.common * rank)) // len(vectors)
        shared = rank - own * len(vectors)
        one, values, other = decompose(weighted_sum(vectors, [1.0] * len(vectors)))
        live = values[:shared] > 0
        left, right = [one[:, :shared] * live], [other[:shared] * live[:, np.newaxis]]
        lengths = [values[:shared]]
        for vector in vectors if own else ():
            rest = vector - left[0] @ (left[0].T @ vector)
            one, values, other = decompose(rest)
            live = values[:own] > 0
            left.append(one[:, :own] * live)
            right.append(other[:own] * live[:, np.newaxis])
            lengths.append(values[:own])
        mean = np.concatenate(lengths).mean()
        stacked = orthogonalize(np.concatenate(left, axis=1))
        merged: Array = stacked @ orthogonalize(np.concatenate(right)) * mean
        return merged
