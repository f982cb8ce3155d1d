"""Iso-CTS: as Iso-C, with the weakest common directions replaced by each model's own.

Source: Marczak et al. 2025, arXiv:2502.04959, Algorithm 2: the strongest directions of the sum,
then of each model what is orthogonal to them, all made orthogonal and given the mean singular
value. Embeddings, output heads and tensors that are not matrices are averaged. Differs: directions
that there are none of stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.method import Array, MergeMethod, Place

__all__ = ["IsoCts"]


class IsoCts(MergeMethod):
    """Costs N + 3 singular value decompositions a matrix; a tensor is in memory whole."""

    paper: ClassVar[str] = "arXiv:2502.04959"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = True

    common: float = Field(
        0.8, ge=0, le=1, description="share of the directions that come from the sum"
    )
    scale: float = Field(1.0, description="multiplier of the merged task vector (alpha)")
    embeddings: Literal["mean", "matrix"] = Field(
        "mean", description="what embeddings and output heads are merged as"
    )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        from stillroom.merge.arithmetic import task_vectors
        from stillroom.merge.spectral import is_matrix, mean_of

        base, vectors = task_vectors(base, parents, "iso_cts")
        merged = mean_of(vectors)
        if is_matrix(at, vectors, embeddings=self.embeddings == "matrix"):
            merged = _merge(vectors, self.common)
        merged *= merged.dtype.type(self.scale)
        return base + merged


def _merge(vectors: Sequence[Array], common: float) -> Array:
    import numpy as np

    from stillroom.merge.arithmetic import weighted_sum
    from stillroom.merge.spectral import decompose, orthogonalize

    rank = min(vectors[0].shape)
    own = (rank - int(common * rank)) // len(vectors)
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
