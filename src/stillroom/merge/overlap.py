"""Which models changed an element: counts that RAM merges by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillroom.merge.method import Array

__all__ = ["count_changed", "keep_changed", "sum_of"]


def count_changed(vectors: Sequence[Array], epsilon: float) -> Array:
    """Return how many of the task vectors moved each element by more than epsilon."""
    count = np.zeros_like(vectors[0])
    for vector in vectors:
        count += np.abs(vector) > epsilon
    return count


def keep_changed(vectors: Sequence[Array], epsilon: float) -> list[Array]:
    """Return the task vectors without the moves of epsilon or less."""
    return [vector * (np.abs(vector) > epsilon) for vector in vectors]


def sum_of(vectors: Sequence[Array]) -> Array:
    """Return the plain sum, a fresh array."""
    total = vectors[0].copy()
    for vector in vectors[1:]:
        total += vector
    return total
