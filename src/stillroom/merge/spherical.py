"""Means on a sphere: iterated on one coefficient a model, never on the tensors themselves.

Every point that these methods visit is a combination of the models' vectors, so all they need of a
tensor is its Gram matrix: one pass of reading, then arithmetic on a handful of numbers, then one
elementwise pass. A vector of length zero has no direction: it counts in lengths only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stillroom.errors import RecipeError
from stillroom.merge.arithmetic import cosine, products
from stillroom.merge.method import Array, Block, Blocks

__all__ = ["Mix", "blend", "find_mean", "gram_of", "mix", "share_second", "shares_of", "turn"]

Mix = tuple[list[float], float]
"""A coefficient for each model, and what their sum exceeds 1 by."""

_FLAT = 1e-12
_TINY = 1e-150


def shares_of(weights: Sequence[float], method: str) -> list[float]:
    """Return the weights divided by their sum.

    Raises:
        RecipeError: If they add up to zero.
    """
    total = math.fsum(weights)
    if abs(total) < 1e-9:
        raise RecipeError(
            f"the weights of {method} add up to zero, which nothing can be divided by",
            code="merge.weights",
            where="models",
            expected="weights with a sum other than 0",
            next="change a weight",
        )
    return [weight / total for weight in weights]


def share_second(weights: Sequence[float], method: str) -> float:
    """Return how far from the first of two models to the second their weights lie.

    Raises:
        RecipeError: If the weights add up to zero.
    """
    return shares_of(weights, method)[1]


def gram_of(blocks: Blocks) -> Array:
    """Return the Gram matrix of the models: of their task vectors where there is a base."""

    def vectors_of(block: Block) -> Sequence[Array]:
        if block.base is None:
            return block.parents
        return [parent - block.base for parent in block.parents]

    return products(blocks, vectors_of)


def mix(base: Array | None, parents: Sequence[Array], how: Mix) -> Array:
    """Return the combination of the models, or of their task vectors on the base.

    Written as the first model plus differences from it, so that equal models give themselves back
    bit for bit where the coefficients' sum exceeds 1 by exactly 0.
    """
    first, *others = parents
    coefficients, extra = how
    total = first.copy()
    for other, coefficient in zip(others, coefficients[1:], strict=True):
        step = other - first
        step *= step.dtype.type(coefficient)
        total += step
    if extra:
        total += (first if base is None else first - base) * first.dtype.type(extra)
    return total


def turn(gram: Array, share: float) -> Mix:
    """Return the point on the great circle from the first vector to the second.

    Vectors of length zero, and such that point the same or the opposite way, have no great circle
    of their own: they are mixed on the straight line.
    """
    turned = cosine(gram, 0, 1) if len(gram) else 1.0
    if 1 - turned * turned <= _FLAT or not gram[0, 0] * gram[1, 1]:
        return [1 - share, share], 0.0
    angle = math.acos(turned)
    first = math.sin((1 - share) * angle) / math.sin(angle)
    second = math.sin(share * angle) / math.sin(angle)
    return [first, second], first + second - 1


def blend(gram: Array, weights: Sequence[float], total: float) -> Mix:
    """Return the tangent-space mean: log map at the normalized mean, weighted sum, exp map.

    Args:
        gram: Of the vectors.
        weights: One a vector.
        total: The sum of the weights; exactly 1 where they were normalized.

    Returns:
        The mean, as long as the weighted sum of the lengths. Where the directions cancel out there
        is no mean direction, and the weighted sum itself is returned.
    """
    lengths, units = _normalize(gram)
    shares = np.asarray(weights, np.float64)
    line: Mix = list(weights), total - 1
    if _are_equal(gram):
        return line
    start = shares * (lengths > 0)
    norm = _length(start, units)
    if norm < _FLAT:
        return line
    start /= norm
    tangent = shares * (lengths > 0)
    tangent = tangent - float(tangent @ (units @ start)) * start
    step = _length(tangent, units)
    point = math.cos(step) * start
    if step > _TINY:
        point = point + math.sin(step) / step * tangent
    return _to_mix(point * float(shares @ lengths), lengths)


def find_mean(gram: Array, shares: Sequence[float], most: int, tolerance: float) -> Mix:
    """Return the Karcher mean of the directions, as long as the weighted mean of the lengths.

    Args:
        gram: Of the vectors.
        shares: Weights with sum 1.
        most: Steps at most.
        tolerance: Ends where a step is shorter than this.

    Returns:
        The mean; the weighted mean of the vectors where they are all equal or all zero.
    """
    lengths, units = _normalize(gram)
    line: Mix = list(shares), 0.0
    if _are_equal(gram) or not lengths.any():
        return line
    weights = np.asarray(shares, np.float64)
    alive = np.where(lengths > 0, weights, 0.0)
    alive /= alive.sum() or 1.0
    point = alive.copy()
    norm = _length(point, units)
    if norm < _FLAT:
        point = np.zeros_like(point)
        point[int(np.argmax(lengths > 0))] = norm = 1.0
    point /= norm
    for _ in range(most):
        step = _tangent(point, alive, units)
        size = _length(step, units)
        if size < tolerance:
            break
        point = math.cos(size) * point + math.sin(size) / size * step
        point /= _length(point, units)
    return _to_mix(point * float(weights @ lengths), lengths)


def _tangent(point: Array, shares: Array, units: Array) -> Array:
    """Return the weighted sum of the log maps at a point, as coefficients of the directions."""
    step = np.zeros_like(point)
    for number, turned in enumerate(np.clip(units @ point, -1, 1).tolist()):
        angle = math.acos(turned)
        sine = math.sqrt(max(0.0, 1 - turned * turned))
        if sine < _FLAT:
            continue
        factor = float(shares[number]) * angle / sine
        step -= factor * turned * point
        step[number] += factor
    return step


def _normalize(gram: Array) -> tuple[Array, Array]:
    """Return the vectors' lengths, and the cosines between them; 0 with a vector of length 0."""
    lengths = np.sqrt(np.diag(gram))
    scale = np.outer(lengths, lengths)
    return lengths, np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)


def _length(coefficients: Array, units: Array) -> float:
    return math.sqrt(max(0.0, float(coefficients @ units @ coefficients)))


def _are_equal(gram: Array) -> bool:
    """Tell whether all vectors are the same one: exactly then are all products the same."""
    return not gram.size or bool((gram == gram[0, 0]).all())


def _to_mix(point: Array, lengths: Array) -> Mix:
    """Turn coefficients of directions into coefficients of vectors."""
    scaled = np.divide(point, lengths, out=np.zeros_like(point), where=lengths > 0)
    coefficients = [float(value) for value in scaled]
    return coefficients, math.fsum(coefficients) - 1
