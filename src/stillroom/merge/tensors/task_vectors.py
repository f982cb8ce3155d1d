"""Task vectors: weighted sums (``normalize``), sign election, random pruning (DARE, DELLA).

All results are independent of block size and number of threads: sums are taken by row and then
added exactly, and random numbers are counter-based.

Ranking is one integer sort per row: a key has the magnitude's upper bits and, below them, the
position in the row. Equal magnitudes thus rank by position, and so do those that differ by less
than about one part in 2**11, which changes a probability by at most a step. The random number
belongs to the rank instead of the position, which saves a second permutation and is equally
independent of blocks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import (
    Array,
    BlockContext,
    RowBlock,
    TensorBlocks,
    missing_base_error,
)

__all__ = [
    "PROBABILITY_LEVELS",
    "ElementFactors",
    "bernoulli_mask",
    "check_weight_sum",
    "combine_weighted",
    "cosine",
    "count_changed",
    "disjoint_mean",
    "drop_unchanged",
    "elect_sign",
    "exact_sum",
    "find_probability_window",
    "gram_matrix",
    "magnitude_bits",
    "magprune",
    "measure_single_row",
    "philox_uint16",
    "plain_sum",
    "random_sparsify",
    "rescale",
    "task_vectors",
    "weighted_sum",
]

PROBABILITY_LEVELS = 1 << 16
_LEAST_SUM = 1e-9


def task_vectors(
    base: Array | None, parents: Sequence[Array], method: str
) -> tuple[Array, list[Array]]:
    """Return the base and each parent's difference from it (task vector, delta, diff).

    Raises:
        RecipeError: If the merge has no base.
    """
    if base is None:
        raise missing_base_error(method)
    return base, [parent - base for parent in parents]


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted sum of arrays in their type, added in the given order."""
    total: Array = arrays[0] * arrays[0].dtype.type(weights[0])
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += array if weight == 1 else array * array.dtype.type(weight)
    return total


def combine_weighted(
    vectors: Sequence[Array], weights: Sequence[float], *, normalize: bool
) -> Array:
    """Return the weighted sum of vectors; ``normalize`` divides by the sum of the weights.

    Raises:
        RecipeError: If the weights of a mean add up to zero.
    """
    total = weighted_sum(vectors, weights)
    if normalize:
        check_weight_sum(weights)
        total = total / total.dtype.type(math.fsum(weights))
    return total


def check_weight_sum(weights: Sequence[float]) -> None:
    """Raise an error for weights that add up to zero.

    Raises:
        RecipeError: If the sum is zero.
    """
    if abs(math.fsum(weights)) < _LEAST_SUM:
        raise RecipeError(
            "the weights add up to zero",
            code="merge.weights",
            where="models",
            expected="weights with a sum other than 0",
            next="change a weight, or set method.normalize to false",
        )


def rescale(vector: Array, factor: float) -> Array:
    """Multiply a vector by a factor in its type; return it unchanged at 1."""
    return vector if factor == 1 else vector * vector.dtype.type(factor)


def elect_sign(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return per element the sign with the larger weighted mass, as a sign bit; ties elect +.

    TIES' majority sign consensus. The bits are integers as wide as the vectors: 0 for +, the top
    bit for -.
    """
    votes = np.atleast_1d(weighted_sum(vectors, weights))
    votes += 0.0  # a negative zero is a tie, too
    bits = _bits(votes)
    bits &= bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return bits.reshape(np.shape(vectors[0]))


def disjoint_mean(
    vectors: Sequence[Array], sign: Array, weights: Sequence[float], *, normalize: bool = True
) -> Array:
    """Return the weighted mean, per element, of the values with the elected sign.

    Zeros have no sign: they count neither in the sum nor in the divisor. A negative weight is a
    positive one of the negated vector, as in the vote.
    """
    total, mass = np.zeros_like(vectors[0]), np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        if weight < 0:
            vector, weight = -vector, -weight
        # With the elected sign flipped to +, positive elements agree with it.
        flipped = np.asarray((_bits(vector) ^ sign).view(vector.dtype))
        shares = (flipped > 0) * vector.dtype.type(weight)
        if normalize:
            mass += shares
        flipped *= shares
        total += flipped
    if normalize:
        mass += mass == 0
        total /= mass
    return (_bits(total) ^ sign).view(total.dtype)


def gram_matrix(blocks: TensorBlocks, vectors_of: Callable[[RowBlock], Sequence[Array]]) -> Array:
    """Return the Gram matrix of several vectors over one tensor, (n, n), float64."""

    def reduce(block: RowBlock) -> list[Array]:
        rows = [_as_rows(vector) for vector in vectors_of(block)]
        return [
            np.einsum("ij,ij->i", first, second).astype(np.float64)
            for i, first in enumerate(rows)
            for second in rows[: i + 1]
        ]

    parts = blocks.each(reduce)
    if not parts:
        return np.zeros((0, 0))
    sums = [math.fsum(np.concatenate(column).tolist()) for column in zip(*parts, strict=True)]
    size = int((math.isqrt(8 * len(sums) + 1) - 1) // 2)
    gram = np.zeros((size, size))
    for index, value in enumerate(sums):
        i = (math.isqrt(8 * index + 1) - 1) // 2
        j = index - i * (i + 1) // 2
        gram[i, j] = gram[j, i] = value
    return gram


def exact_sum(
    blocks: TensorBlocks, values_of: Callable[[RowBlock], Sequence[Array]]
) -> list[float]:
    """Return the exact sums over one tensor of several arrays per block."""
    parts = blocks.each(
        lambda block: [
            _as_rows(values).sum(axis=1).astype(np.float64) for values in values_of(block)
        ]
    )
    return [math.fsum(np.concatenate(column).tolist()) for column in zip(*parts, strict=True)]


def cosine(gram: Array, i: int, j: int) -> float:
    """Return the clipped cosine of two vectors of a Gram matrix; 0 for zero vectors."""
    norm = math.sqrt(gram[i, i] * gram[j, j])
    return min(1.0, max(-1.0, float(gram[i, j]) / norm)) if norm > 0 else 0.0


def magnitude_bits(vector: Array) -> Array:
    """Return the float32 bits of magnitudes, flat int32, in the order of the magnitudes."""
    flat = np.ascontiguousarray(vector, dtype=np.float32).reshape(-1)
    bits: Array = flat.view(np.int32) & np.int32(0x7FFFFFFF)
    return bits


def philox_uint16(shape: tuple[int, ...], key: str, context: BlockContext) -> Array:
    """Return random 16-bit numbers, (shape), uint16.

    Counter-based (Philox): an element of a tensor has the same number for a seed and key,
    independent of blocks and of other tensors.

    Args:
        shape: Shape of the block.
        key: Key of the parent.
        context: Position of the block.
    """
    count = math.prod(shape)
    name = f"{context.seed}\0{context.name}\0{key}".encode("utf-8", "surrogatepass")
    words = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8").astype(np.uint64)
    # One counter step gives four 64-bit words, that is sixteen elements of 16 bits.
    step, skip = divmod(context.offset, 16)
    stream = np.random.Philox(key=words).advance(step)
    raw = stream.random_raw((skip + count + 3) // 4).astype("<u8", copy=False)
    return raw.view("<u2")[skip : skip + count].reshape(shape)


def bernoulli_mask(shape: tuple[int, ...], share: float, key: str, context: BlockContext) -> Array:
    """Return a mask that keeps each element with a probability, (shape), bool.

    Args:
        shape: Shape of the block.
        share: The probability, rounded to steps of 2**-16.
        key: Key of the parent.
        context: Position of the block; see ``philox_uint16``.
    """
    level = round(share * PROBABILITY_LEVELS)
    if level >= PROBABILITY_LEVELS:
        return np.ones(shape, bool)
    return np.asarray(philox_uint16(shape, key, context) < np.uint16(level), dtype=bool)


def random_sparsify(
    vectors: Sequence[Array], shares: Sequence[float], context: BlockContext, *, rescale: bool
) -> list[Array]:
    """Drop and rescale (DARE): keep each element with its probability, mask by mask.

    Args:
        vectors: One per parent, any shape; modified in place to save memory traffic.
        shares: Probability of keeping an element (density), per vector.
        context: Position of the block.
        rescale: Divide kept elements by their probability.
    """
    pruned = []
    for vector, key, share in zip(vectors, context.keys, shares, strict=True):
        thinned = np.atleast_1d(vector)
        thinned *= bernoulli_mask(thinned.shape, share, key, context)
        exact = round(share * PROBABILITY_LEVELS) / PROBABILITY_LEVELS
        if rescale and 0 < exact < 1:
            thinned *= thinned.dtype.type(1 / exact)
        pruned.append(thinned.reshape(np.shape(vector)))
    return pruned


def _as_rows(vector: Array) -> Array:
    """Reshape an array to (rows, elements per row)."""
    return vector.reshape(vector.shape[0] if vector.ndim else 1, -1)


def _bits(vector: Array) -> Array:
    """Return an array's bits as integers of the same width."""
    flat = np.ascontiguousarray(vector).reshape(np.shape(vector))
    return flat.view(np.uint32 if flat.itemsize == 4 else np.uint64)


def count_changed(vectors: Sequence[Array], epsilon: float) -> Array:
    """Count the task vectors that changed each element by more than epsilon."""
    count = np.zeros_like(vectors[0])
    for vector in vectors:
        count += np.abs(vector) > epsilon
    return count


def drop_unchanged(vectors: Sequence[Array], epsilon: float) -> list[Array]:
    """Set changes of at most epsilon to zero."""
    return [vector * (np.abs(vector) > epsilon) for vector in vectors]


def plain_sum(vectors: Sequence[Array]) -> Array:
    """Return the unweighted sum in a new array."""
    total = vectors[0].copy()
    for vector in vectors[1:]:
        total += vector
    return total


# Factors of the elements of a single-row vector.
ElementFactors = list[float]
_MAX_PACKED_WIDTH = 1 << 12


def find_probability_window(
    density: float, epsilon: float, *, below_one: bool = False
) -> tuple[float, float]:
    """Return density and epsilon; at a density of 0 or 1 nothing or all is kept, epsilon is 0.

    Args:
        density: Mean keep probability of a row.
        epsilon: Distance of the smallest and the largest probability from it.
        below_one: Refuse a largest probability of exactly 1.

    Raises:
        RecipeError: If a probability of another density is outside of 0 to 1.
    """
    if density in {0, 1}:
        return density, 0.0
    highest = density + epsilon
    if density - epsilon <= 0 or highest > 1 or (below_one and highest == 1):
        raise RecipeError(
            f"a density of {density:g} with an epsilon of {epsilon:g} keeps elements with "
            f"probabilities from {density - epsilon:g} to {density + epsilon:g}",
            code="merge.window",
            where="method.epsilon",
            expected="density - epsilon over 0, and density + epsilon "
            + ("below 1, as mergekit asks" if below_one else "at most 1"),
            next=f"an epsilon below {min(density, 1 - density):g}, or another density",
        )
    return density, epsilon


def measure_single_row(
    blocks: TensorBlocks, method: str, windows: list[tuple[float, float]], *, rescale: bool
) -> list[ElementFactors] | None:
    """Return the factors of a single-row tensor, which blocks would split; None for others.

    Args:
        blocks: The tensor.
        method: Name of the method, for a missing base.
        windows: Density and epsilon of every parent.
        rescale: As in ``magprune``.

    Raises:
        RecipeError: If there is no base.
    """
    if len(blocks.context.shape) > 1:
        return None

    def vectors_of(block: RowBlock) -> list[Array]:
        return [v.reshape(-1) for v in task_vectors(block.base, block.parents, method)[1]]

    rows = [np.concatenate(parts) for parts in zip(*blocks.each(vectors_of), strict=True)]
    return [
        _draw_factors(row[None], window, key, blocks.context, rescale=rescale)[0].tolist()
        for row, window, key in zip(rows, windows, blocks.context.keys, strict=False)
    ]


def magprune(
    vectors: list[Array],
    windows: list[tuple[float, float]],
    measured: list[ElementFactors] | None,
    context: BlockContext,
    *,
    rescale: bool,
) -> list[Array]:
    """Drop elements of vectors at random, small ones of a row more often.

    Args:
        vectors: One per parent, any shape; rows run along the last dimension.
        windows: Mean keep probability per vector, and its distance from those of the smallest
            (below) and largest (above) element of a row.
        measured: Result of ``measure_single_row``.
        context: Position of the block.
        rescale: Divide kept elements by their probability.
    """
    pruned = []
    for number, (vector, window, key) in enumerate(
        zip(vectors, windows, context.keys, strict=True)
    ):
        size = math.prod(vector.shape)
        if measured is not None:
            cut = measured[number][context.offset : context.offset + size]
            shares = np.asarray(cut, vector.dtype)
        elif size:
            rows = vector.reshape(-1, vector.shape[-1])
            shares = _draw_factors(rows, window, key, context, rescale=rescale)
        else:
            shares = np.zeros(0, vector.dtype)
        pruned.append(vector * shares.reshape(vector.shape))
    return pruned


def _draw_factors(
    rows: Array, window: tuple[float, float], key: str, context: BlockContext, *, rescale: bool
) -> Array:
    """Return the factor of each element: 0, or 1 over its probability; (rows, width)."""
    width = rows.shape[1]
    if not rows.size:
        return np.zeros(rows.shape, rows.dtype)
    last, factors = _find_rank_factors(width, *window, rows.dtype, rescale=rescale)
    factors_by_rank = factors * (philox_uint16(rows.shape, key, context) <= last)
    positions = _argsort_magnitudes(rows)
    positions += (np.arange(len(rows), dtype=np.int64) * width)[:, None]
    shares = np.empty(rows.size, rows.dtype)
    shares[positions.reshape(-1)] = factors_by_rank.reshape(-1)
    return shares.reshape(rows.shape)


@lru_cache(maxsize=64)
def _find_rank_factors(
    width: int, density: float, epsilon: float, dtype: np.dtype[Any], *, rescale: bool
) -> tuple[Array, Array]:
    """Return for every rank the largest random number that keeps (uint16), and its factor.

    Cached: a model's rows have few widths, but thousands of blocks.
    """
    # The keep probability of every rank (DELLA), ascending, in steps of 2**-16.
    rising = np.arange(width) * (2.0 / (width - 1)) - 1 if width > 1 else np.zeros(1)
    levels = np.clip(
        np.rint((density + epsilon * rising) * PROBABILITY_LEVELS), 1, PROBABILITY_LEVELS
    )
    factors = PROBABILITY_LEVELS / levels if rescale else np.ones(width)
    factors *= density > 0  # the lowest level is 1, but a density of 0 keeps nothing
    return (levels - 1).astype(np.uint16), factors.astype(dtype)


def _argsort_magnitudes(rows: Array) -> Array:
    """Return the positions of every row's elements by magnitude, (rows, width), int64."""
    width = rows.shape[1]
    if width > _MAX_PACKED_WIDTH:
        bits = magnitude_bits(rows).reshape(rows.shape)
        wide = (bits.astype(np.int64) << 32) | np.arange(width)
        wide.sort(axis=-1)
        wide &= 0xFFFFFFFF
        return wide
    room = (width - 1).bit_length()
    # Without the sign bit, the magnitude starts at the top of the key.
    keys = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32) << np.uint32(1)
    keys &= np.uint32(0xFFFFFFFF >> room << room)
    keys |= np.arange(width, dtype=np.uint32)
    keys.sort(axis=-1)
    keys &= np.uint32((1 << room) - 1)
    return keys.astype(np.int64)
