"""Arithmetic that several methods share: task vectors, votes, exact sums, random masks.

Everything here gives the same bits for any block size and any number of threads: sums go row by row
and are then added exactly, and random numbers are counted, not drawn in turn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from stillroom.errors import RecipeError
from stillroom.merge.method import Array, Block, Blocks, Place

__all__ = [
    "LEVELS",
    "check_sum",
    "cosine",
    "disjoint_mean",
    "draw_levels",
    "elect_sign",
    "keep_random",
    "magnitude_bits",
    "no_base",
    "products",
    "rescale",
    "round_share",
    "task_vectors",
    "thin",
    "total_of",
    "weigh",
    "weighted_sum",
]

LEVELS = 1 << 16
_LEAST_SUM = 1e-9


def task_vectors(
    base: Array | None, parents: Sequence[Array], method: str
) -> tuple[Array, list[Array]]:
    """Return the base and each parent's difference from it.

    Raises:
        RecipeError: If the merge has no base.
    """
    if base is None:
        raise no_base(method)
    return base, [parent - base for parent in parents]


def no_base(method: str) -> RecipeError:
    """Return the error of a merge that lacks the base that its method needs."""
    return RecipeError(
        f"{method} merges differences from a base, and there is none",
        code="merge.base",
        where="base",
        expected="the checkpoint that the models were fine-tuned from",
        next="add it to the recipe as 'base'",
    )


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted sum of arrays in their own type, added in the given order."""
    total: Array = arrays[0] * arrays[0].dtype.type(weights[0])
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += array if weight == 1 else array * array.dtype.type(weight)
    return total


def weigh(vectors: Sequence[Array], weights: Sequence[float], *, normalize: bool) -> Array:
    """Return the weighted sum of vectors, or with ``normalize`` their weighted mean.

    Raises:
        RecipeError: If the weights of a mean add up to zero.
    """
    total = weighted_sum(vectors, weights)
    if normalize:
        check_sum(weights)
        total = total / total.dtype.type(math.fsum(weights))
    return total


def check_sum(weights: Sequence[float]) -> None:
    """Refuse weights whose sum nothing can be divided by.

    Raises:
        RecipeError: If so.
    """
    if abs(math.fsum(weights)) < _LEAST_SUM:
        raise RecipeError(
            "the weights add up to zero, which nothing can be divided by",
            code="merge.weights",
            where="models",
            expected="weights with a sum other than 0",
            next="change a weight, or set method.normalize to false",
        )


def rescale(vector: Array, factor: float) -> Array:
    """Return a vector times a factor in its own type; itself at 1."""
    return vector if factor == 1 else vector * vector.dtype.type(factor)


def elect_sign(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return per element the sign with the larger weighted mass, as a sign bit; a draw elects +.

    The bits are integers as wide as the vectors: 0 where + is elected, the top bit where - is.
    """
    votes = np.atleast_1d(weighted_sum(vectors, weights))
    votes += 0.0  # a negative zero is a draw too
    bits = _bits(votes)
    bits &= bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return bits.reshape(np.shape(vectors[0]))


def disjoint_mean(
    vectors: Sequence[Array], sign: Array, weights: Sequence[float], *, normalize: bool = True
) -> Array:
    """Return the weighted mean, per element, of the values that have the elected sign.

    A zero has no sign: it counts neither in the sum nor in the divisor.
    """
    total, mass = np.zeros_like(vectors[0]), np.zeros_like(vectors[0])
    zeros = np.zeros_like(vectors[0])  # numpy's maximum with one number is three times as slow
    for vector, weight in zip(vectors, weights, strict=True):
        # With the elected sign flipped to +, what agrees is what is positive.
        flipped = np.asarray((_bits(vector) ^ sign).view(vector.dtype))
        share = vector.dtype.type(weight)
        if normalize:
            mass += (flipped > 0) * share
        np.maximum(flipped, zeros, out=flipped)
        flipped *= share
        total += flipped
    if normalize:
        mass += mass == 0
        total /= mass
    return (_bits(total) ^ sign).view(total.dtype)


def products(blocks: Blocks, vectors_of: Callable[[Block], Sequence[Array]]) -> Array:
    """Return the Gram matrix of several vectors over one tensor, (n, n), float64."""

    def reduce(block: Block) -> list[Array]:
        rows = [_as_rows(vector) for vector in vectors_of(block)]
        return [
            np.einsum("ij,ij->i", left, right).astype(np.float64)
            for i, left in enumerate(rows)
            for right in rows[: i + 1]
        ]

    parts = blocks.each(reduce)
    if not parts:
        return np.zeros((0, 0))
    sums = [math.fsum(np.concatenate(column).tolist()) for column in zip(*parts, strict=True)]
    size = int((math.isqrt(8 * len(sums) + 1) - 1) // 2)
    gram = np.zeros((size, size))
    for at, value in enumerate(sums):
        i = (math.isqrt(8 * at + 1) - 1) // 2
        j = at - i * (i + 1) // 2
        gram[i, j] = gram[j, i] = value
    return gram


def total_of(blocks: Blocks, values_of: Callable[[Block], Sequence[Array]]) -> list[float]:
    """Return the exact sum over one tensor of each of several arrays a block."""
    parts = blocks.each(
        lambda block: [
            _as_rows(values).sum(axis=1).astype(np.float64) for values in values_of(block)
        ]
    )
    return [math.fsum(np.concatenate(column).tolist()) for column in zip(*parts, strict=True)]


def cosine(gram: Array, i: int, j: int) -> float:
    """Return the cosine of two vectors of a Gram matrix, within -1 and 1; of a zero vector, 0."""
    norm = math.sqrt(gram[i, i] * gram[j, j])
    return min(1.0, max(-1.0, float(gram[i, j]) / norm)) if norm > 0 else 0.0


def magnitude_bits(vector: Array) -> Array:
    """Return the float32 patterns of magnitudes, flat int32; they order as the magnitudes do."""
    flat = np.ascontiguousarray(vector, dtype=np.float32).reshape(-1)
    bits: Array = flat.view(np.int32) & np.int32(0x7FFFFFFF)
    return bits


def round_share(share: float) -> float:
    """Return the probability, in steps of 2**-16, with which a mask of that share keeps."""
    return round(share * LEVELS) / LEVELS


def draw_levels(shape: tuple[int, ...], key: str, at: Place) -> Array:
    """Return random numbers of 16 bits, (shape), uint16.

    Drawn by a counter (Philox): element n of tensor ``at.name`` has the same number for one seed
    and key, however the tensor is cut into blocks and whatever else is merged.

    Args:
        shape: Of the block.
        key: Names the parent.
        at: Where the block lies.
    """
    count = math.prod(shape)
    name = f"{at.seed}\0{at.name}\0{key}".encode("utf-8", "surrogatepass")
    words = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8").astype(np.uint64)
    # One step of the counter gives four words of 64 bits, that is sixteen elements of 16.
    step, skip = divmod(at.offset, 16)
    stream = np.random.Philox(key=words).advance(step)
    raw = stream.random_raw((skip + count + 3) // 4).astype("<u8", copy=False)
    return raw.view("<u2")[skip : skip + count].reshape(shape)


def keep_random(shape: tuple[int, ...], share: float, key: str, at: Place) -> Array:
    """Return a mask that keeps each element with a probability, (shape), bool.

    Args:
        shape: Of the block.
        share: The probability; counted in steps of 2**-16, see ``round_share``.
        key: Names the parent.
        at: Where the block lies; see ``draw_levels``.
    """
    level = round(share * LEVELS)
    if level >= LEVELS:
        return np.ones(shape, bool)
    return np.asarray(draw_levels(shape, key, at) < np.uint16(level), dtype=bool)


def thin(
    vectors: Sequence[Array], shares: Sequence[float], at: Place, *, rescale: bool
) -> list[Array]:
    """Return vectors with elements dropped at random, each vector with a mask of its own.

    Args:
        vectors: One a parent, any shape; changed in place, which spares the cache their copies.
        shares: The share of each that is kept.
        at: Where the block lies.
        rescale: Divide what is kept by the probability with which it is.
    """
    kept = []
    for vector, key, share in zip(vectors, at.keys, shares, strict=True):
        thinned = np.atleast_1d(vector)
        thinned *= keep_random(thinned.shape, share, key, at)
        exact = round_share(share)
        if rescale and 0 < exact < 1:
            thinned *= thinned.dtype.type(1 / exact)
        kept.append(thinned.reshape(np.shape(vector)))
    return kept


def _as_rows(vector: Array) -> Array:
    """Return an array of any shape as (rows, numbers of a row)."""
    return vector.reshape(vector.shape[0] if vector.ndim else 1, -1)


def _bits(vector: Array) -> Array:
    """Return an array's own bits as integers of the same width."""
    flat = np.ascontiguousarray(vector).reshape(np.shape(vector))
    return flat.view(np.uint32 if flat.itemsize == 4 else np.uint64)
