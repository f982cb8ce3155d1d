"""The closed form behind RegMean: the matrix whose outputs are nearest to all parents' outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillroom.errors import RecipeError
from stillroom.merge.method import Array

__all__ = ["check_positive", "solve_regmean", "weighted_mean"]

_JITTER = 1e-9


def check_positive(weights: Sequence[float], method: str) -> None:
    """Refuse weights that are not above zero: they say how much each model's outputs count.

    Raises:
        RecipeError: If one is zero or negative.
    """
    if not all(weight > 0 for weight in weights):
        raise RecipeError(
            f"{method} cannot weigh models by {', '.join(f'{weight:g}' for weight in weights)}",
            code="merge.weights",
            where="models",
            expected="weights above zero",
            next="leave a model out instead of giving it no weight",
        )


def solve_regmean(
    parents: Sequence[Array], grams: Sequence[Array], weights: Sequence[float], share: float
) -> Array:
    """Return W that minimizes the sum of weighted squared distances of outputs, (out, in), float64.

    Solved as a change from the first parent, so that equal parents give that parent exactly.
    Where no parent's inputs ever went, the weighted mean is taken.

    Args:
        parents: The parents' matrices, (out, in).
        grams: The mean of x x^T over each parent's inputs, (in, in).
        weights: How much each parent's outputs count.
        share: What off-diagonal products are multiplied by (alpha); 1 leaves the Gram matrix.
    """
    first = np.asarray(parents[0], dtype=np.float64)
    scaled = []
    for gram, weight in zip(grams, weights, strict=True):
        shrunk = gram * (share * weight)
        np.fill_diagonal(shrunk, np.diagonal(gram) * weight)
        scaled.append(shrunk)
    total = np.sum(scaled, axis=0)
    jitter = _JITTER * float(np.trace(total)) / len(total) or 1.0
    mass = sum(weights)
    change = np.zeros_like(first)
    for parent, shrunk, weight in zip(parents[1:], scaled[1:], weights[1:], strict=True):
        vector = np.asarray(parent, dtype=np.float64) - first
        change += vector @ shrunk + (jitter * weight / mass) * vector
    total[np.diag_indices_from(total)] += jitter
    # total is symmetric: W total = change is total W^T = change^T.
    return first + np.linalg.solve(total, change.T).T


def weighted_mean(parents: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted mean as a change from the first parent: equal parents give it exactly."""
    mass = sum(weights)
    result = parents[0].copy()
    for parent, weight in zip(parents[1:], weights[1:], strict=True):
        result += (parent - parents[0]) * parents[0].dtype.type(weight / mass)
    return result
