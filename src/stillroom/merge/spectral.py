"""Steps on matrices that the methods with a singular value decomposition share.

Which tensors are matrices is decided by shape and name: two dimensions, both over 1, and, unless a
recipe says otherwise, no embedding or output head, whose rows are words and not directions. All
else is averaged, as the papers' code does.

What it costs: LAPACK's decomposition of an (m, n) matrix, m >= n, is some 6 m n**2 + 20 n**3
operations; on one core in float32 0.2 s at (1536, 576) and 12 s at (8192, 2048). The engine holds
LAPACK to one thread of its own: with another number of them the last bits differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from stillroom.merge.device import svd
from stillroom.merge.method import Array

__all__ = [
    "decompose",
    "is_matrix",
    "mean_of",
    "orthogonalize",
    "rebuild",
]

_WORDS = re.compile(r"embed|lm_head|\bwte\b|\bwpe\b|\bshared\.weight$|\bhead\.weight$")


def is_matrix(name: str, shape: tuple[int, ...], *, embeddings: bool = False) -> bool:
    """Tell whether a tensor is merged as a matrix.

    Args:
        name: The tensor's name.
        shape: Its shape.
        embeddings: Whether embeddings and output heads are matrices too.
    """
    if len(shape) != 2 or min(shape) < 2:
        return False
    return embeddings or not _WORDS.search(name)


def mean_of(vectors: Sequence[Array]) -> Array:
    """Return the plain mean, added in the given order."""
    total = vectors[0].copy()
    for vector in vectors[1:]:
        total += vector
    total /= len(vectors)
    return total


def decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Return left directions, singular values and right directions, the largest value first.

    Where LAPACK does not converge in float32, which is rare, it is asked again in float64.
    """
    try:
        left, values, right = svd(matrix)
    except np.linalg.LinAlgError:
        if matrix.dtype == np.float64:
            raise
        left, values, right = (
            part.astype(matrix.dtype) for part in decompose(matrix.astype(np.float64))
        )
    return left, values, right


def orthogonalize(directions: Array, parts: tuple[Array, Array, Array] | None = None) -> Array:
    """Return the nearest matrix with orthonormal columns or rows: the polar factor.

    Directions that the matrix does not have stay zero; the decomposition would make them up.

    Args:
        directions: The matrix.
        parts: Its decomposition, where it is at hand.
    """
    left, values, right = parts or decompose(directions)
    largest = float(values[0]) if len(values) else 0.0
    limit = max(directions.shape) * float(np.finfo(directions.dtype).eps) * largest
    kept = int(np.count_nonzero(values > limit))
    polar: Array = left[:, :kept] @ right[:kept]
    return polar


def rebuild(left: Array, values: Array, right: Array) -> Array:
    """Return the matrix with these directions and singular values."""
    product: Array = (left * values) @ right
    return product
