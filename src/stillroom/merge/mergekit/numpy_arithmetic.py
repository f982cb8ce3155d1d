"""mergekit 0.1.5's arithmetic in numpy, block by block, bit-exact with torch.

torch rounds to the tensors' type after every operation, computes each in float32, and adds models
in order. numpy reproduces this in a core's cache.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import numpy as np

from stillroom.checkpoints.dtypes import BIT_TYPES, widen
from stillroom.merge.interfaces import Array, RowBlock, TensorBlocks
from stillroom.merge.mergekit.torch_emulation import (
    TorchGenerator,
    select_largest,
    sum_bfloat16,
    to_draw_levels,
)
from stillroom.merge.mergekit.torch_library import TorchLibrary, argsort_rows

__all__ = [
    "MAX_SUMMANDS",
    "SUPPORTED_DTYPES",
    "CastBlocks",
    "PrunedTaskVector",
    "add_products",
    "add_task_vectors",
    "compute_task_vector",
    "find_slerp_shares",
    "fused_multiply_add",
    "gather_parents",
    "magprune",
    "multiply_stored",
    "random_sparsify",
    "round_scalar",
    "round_to",
    "scale_block",
    "to_stored_bits",
    "trim",
]

SUPPORTED_DTYPES = frozenset({"BF16", "F16", "F32"})
"""Supported compute types."""

MAX_SUMMANDS = 3
"""torch adds more models in groups that depend on an element's position."""

_CHUNK = 1 << 15
_DROP_CHUNK = 1 << 17
_SIGNIFICANT = {"BF16": 8, "F16": 11}  # bits of a value, few enough for exact float64 sums
_HALFWAY = np.int64(1 << 28)
_BELOW_FLOAT32 = np.int64((1 << 29) - 1)
_ADDENDS = 1 << 10  # of one float32 sum, in whatever order BLAS adds: within 2**-14 of its size
_SUM_ERROR = 2.0**-13  # generous bound on the relative error of torch's float32 sums and of ours
_NOTHING = 1e-7
_SLERP_CHUNK = 1 << 20  # elements that mergekit widens at once
_SHORT, _STRAIGHT = np.float32(1e-8), np.float32(0.9995)
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class PrunedTaskVector:
    """A parent's whole task vector in the storage type, (size,), and its scale factor."""

    bits: Array
    factor: float = 1.0


class CastBlocks(TensorBlocks, Protocol):
    """One tensor as read by mergekit: parents in the recipe's order, cast to one storage type.

    A tensor of shape () is one row with one element.
    """

    @property
    def kind(self) -> str:
        """Storage type; values are float32 representable in it."""

    def base(self, number: int) -> RowBlock:
        """Read a block of the base only."""

    def first_row(self, number: int) -> int:
        """Return the first row of a block."""


def round_to(values: Array, kind: str) -> Array:
    """Round float32 to a storage type and back, in place if numpy has no such type.

    NaNs produced by arithmetic are kept; a stored NaN may become 0, so reject it when reading.
    """
    if kind == "BF16":
        bits = values.view(np.uint32)
        odd = bits >> np.uint32(16)
        odd &= np.uint32(1)
        odd += np.uint32(0x7FFF)
        bits += odd
        bits &= np.uint32(0xFFFF0000)
        return values
    if kind == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return values


def round_scalar(value: float, kind: str) -> np.float32:
    """Round one number to a storage type."""
    rounded: np.float32 = round_to(np.array([value], np.float32), kind)[0]
    return rounded


def add_products(values: Sequence[Array], weights: Sequence[float], kind: str) -> Array:
    """Return the float32 sum of ``values * weights``, each fused with its addition but the first.

    Args:
        values: One array per weight, float32 of one shape, representable in ``kind``.
        weights: Rounded to float32 first.
        kind: Storage type.
    """
    first, *others = (np.ascontiguousarray(each).reshape(-1) for each in values)
    factors = [np.float64(np.float32(weight)) for weight in weights]
    total = first * np.float32(weights[0])
    at: Array | slice = slice(None)
    if kind in _SIGNIFICANT:
        _add_exact_products(total, others, factors[1:])
        at = _find_small_products((first, *others), factors, _SIGNIFICANT[kind])
    few = first[at] * np.float32(weights[0])
    for each, weight in zip(others, weights[1:], strict=True):
        fused_multiply_add(few, each[at], weight)
    total[at] = few
    return total.reshape(values[0].shape)


def _add_exact_products(
    total: Array, values: Sequence[Array], factors: Sequence[np.float64]
) -> None:
    """Add in place. Where the float64 sum is exact, its rounding is that of a fused operation."""
    product, wide = np.empty((2, min(_CHUNK, len(total))), np.float64)
    for start in range(0, len(total), _CHUNK):
        here = total[start : start + _CHUNK]
        term, added = product[: len(here)], wide[: len(here)]
        for each, factor in zip(values, factors, strict=True):
            term[:] = each[start : start + _CHUNK]
            term *= factor
            added[:] = here
            added += term
            here[:] = added


def _find_small_products(
    values: Sequence[Array], factors: Sequence[np.float64], significant: int
) -> Array:
    """Return the indices where a float64 sum may be inexact.

    A product has ``significant + 24`` bits, and no sum exceeds that of the largest products.
    """
    magnitudes = [np.abs(each) for each in values]
    largest = sum(
        float(each.max(initial=0)) * abs(factor)
        for each, factor in zip(magnitudes, factors, strict=True)
    )
    is_small = np.zeros(len(values[0]), bool)
    for each, factor in zip(magnitudes, factors, strict=True):
        if factor:
            limit = min(largest * 2.0 ** (significant + 24 - 52) / abs(factor), _MAX_FLOAT32)
            is_small |= each < np.float32(limit)
    return np.flatnonzero(is_small)


def fused_multiply_add(total: Array, values: Array, weight: float) -> Array:
    """Add ``values * weight`` to float32 in place with one rounding, as a fused operation does.

    The product of two float32 is exact in float64. The sum is rounded twice, which matters only if
    the first rounding ends halfway between two float32; its error then decides which is nearer.
    """
    flat, added = total.reshape(-1), values.reshape(-1)
    factor = np.float64(np.float32(weight))
    for start in range(0, len(flat), _CHUNK):
        here = flat[start : start + _CHUNK]
        product = added[start : start + _CHUNK].astype(np.float64)
        product *= factor
        wide = here.astype(np.float64)
        wide += product
        halfway = np.flatnonzero((wide.view(np.int64) & _BELOW_FLOAT32) == _HALFWAY)
        if len(halfway):
            addend, term, both = here[halfway].astype(np.float64), product[halfway], wide[halfway]
            total_part = both - term
            error = (term - (both - total_part)) + (addend - total_part)
            toward = np.where(error > 0, np.inf, -np.inf)
            wide[halfway] = np.where(error == 0, both, np.nextafter(both, toward))
        with np.errstate(over="ignore"):
            here[:] = wide
    return total


def compute_task_vector(block: RowBlock, parent: int, kind: str) -> Array:
    """Return a parent's difference from the base."""
    if block.base is None:
        raise ValueError("a difference needs a base")
    return round_to(block.parents[parent] - block.base, kind)


def to_stored_bits(values: Array, kind: str, out: Array | None = None) -> Array:
    """Return rounded float32 values in the storage type, flat, without rounding again."""
    flat = np.ascontiguousarray(values).reshape(-1)
    bits = np.empty(len(flat), BIT_TYPES[kind]) if out is None else out
    if kind == "BF16":
        return np.right_shift(flat.view(np.uint32), np.uint32(16), out=bits, casting="unsafe")
    bits[:] = flat
    return bits


def add_task_vectors(
    block: RowBlock,
    vectors: Sequence[Array],
    kind: str,
    *,
    votes: bool,
    normalize: bool,
    scale: float,
) -> Array:
    """Return a block of ``torch_methods.add_task_vectors``: the base plus weighted task vectors.

    Args:
        block: Base and weights.
        vectors: Task vector of every parent, shaped as the base; may be modified.
        kind: Storage type to which every operation rounds.
        votes: Add only elements that agree with the elected sign.
        normalize: Divide by the summed weights of the added elements.
        scale: Multiplier of the sum.
    """
    shares, masses = _round_shares(block.context.weights, kind)
    weighted = []
    for values, share in zip(vectors, shares, strict=True):
        values *= share
        weighted.append(round_to(values, kind))
    agreeing: Array | np.uint8
    if votes:
        total, agreeing = _vote(weighted)
    else:
        total, agreeing = _add(weighted), np.uint8(len(masses) - 1)
    total = round_to(total, kind)
    if normalize:
        total /= np.take(masses, agreeing, mode="wrap")
        total = round_to(total, kind)
    if scale != 1:
        total *= np.float32(scale)
        total = round_to(total, kind)
    total += block.base
    return round_to(total, kind)


def scale_block(pruned: PrunedTaskVector, block: RowBlock, kind: str) -> Array:
    """Return a block of a pruned vector, scaled."""
    shape = block.base.shape if block.base is not None else ()
    bits = pruned.bits[block.context.offset : block.context.offset + math.prod(shape)]
    values = multiply_stored(bits, pruned.factor, kind)
    fraction, exponent = math.frexp(pruned.factor)
    is_exact = fraction == 0.5 and exponent > 0  # a power of two, 1 at least
    return (values if is_exact else round_to(values, kind)).reshape(shape)


def multiply_stored(bits: Array, factor: float | np.float32, kind: str) -> Array:
    """Return stored values times a factor as new float32, (size,)."""
    values = bits.copy() if kind == "F32" else widen(bits, kind)
    if factor != 1:
        values *= np.float32(factor)
    return values


def _add(arrays: Sequence[Array]) -> Array:
    """Sum arrays, starting from zero, which makes 0 of two negative zeros."""
    total = arrays[0] + np.float32(0)
    for array in arrays[1:]:
        total += array
    return total


def _vote(weighted: Sequence[Array]) -> tuple[Array, Array]:
    """Sum the values that agree with the elected sign; return the sum and the parents that do.

    The arrays are modified. The parents are a bit each, uint8, the first the highest.
    """
    elected = _add(weighted)
    sign = elected.view(np.uint32) & np.uint32(0x80000000)
    total, nothing = np.zeros((2, *elected.shape), np.float32)
    agreeing = np.zeros(elected.shape, np.uint8)
    for values in weighted:
        bits = values.view(np.uint32)
        bits ^= sign  # with the elected sign flipped to +, positive elements agree with it
        agreeing += agreeing
        agreeing |= (values > 0).view(np.uint8)
        total += np.maximum(values, nothing, out=values)  # numpy compares with a number slowly
    return (total.view(np.uint32) ^ sign).view(np.float32), agreeing


@lru_cache
def _round_shares(weights: tuple[float, ...], kind: str) -> tuple[list[np.float32], Array]:
    """Return the weights, and the summed weights of every subset, 1 where they are 0, (2**N,)."""
    shares = [round_scalar(weight, kind) for weight in weights]
    masses = np.zeros(1 << len(shares), np.float32)
    for subset in range(len(masses)):
        for number, share in enumerate(shares):
            if subset << number & len(masses) >> 1:
                masses[subset] += share
    masses = round_to(masses, kind)
    masses[masses == 0] = 1
    return shares, masses


def _gather_task_vectors(blocks: CastBlocks) -> list[Array]:
    """Return every parent's task vector in the storage type, (size,)."""
    return _gather(blocks, lambda block, parent: compute_task_vector(block, parent, blocks.kind))


def gather_parents(blocks: CastBlocks) -> list[Array]:
    """Return every parent in the storage type, (size,)."""
    return _gather(blocks, lambda block, parent: block.parents[parent])


def _gather(blocks: CastBlocks, select: Callable[[RowBlock, int], Array]) -> list[Array]:
    vectors = [np.empty(blocks.size, BIT_TYPES[blocks.kind]) for _ in blocks.context.weights]

    def reduce(block: RowBlock) -> None:
        for number, vector in enumerate(vectors):
            values = select(block, number)
            start = block.context.offset
            to_stored_bits(values, blocks.kind, vector[start : start + values.size])

    blocks.each(reduce)
    return vectors


def find_slerp_shares(
    t: float, parents: Sequence[Array], kind: str, torch: TorchLibrary
) -> tuple[np.float32, np.float32]:
    """Return the coefficients of two parents in ``torch_methods.slerp``.

    Args:
        t: 0 is the first parent, 1 the second.
        parents: Both in the storage type, (size,).
        kind: Storage type.
        torch: Sums and angles, whose rounding is that of its kernels.
    """
    starts = range(0, len(parents[0]), _SLERP_CHUNK)

    def read(parent: Array, start: int) -> Array:
        return widen(parent[start : start + _SLERP_CHUNK], kind)

    with torch.single_threaded():
        norms = []
        for parent in parents:
            squares = np.array([torch.norm(read(parent, start)) for start in starts], np.float32)
            norm = torch.norm(squares) if len(squares) else np.float32(0)
            norms.append(norm if norm > _SHORT else np.float32(1))
        cosine = np.float32(0)
        for start in starts:
            first, second = (
                read(parent, start) / norm for parent, norm in zip(parents, norms, strict=True)
            )
            first *= second
            cosine += torch.sum(first)
        weight = np.float32(t)
        shares = np.float32(1) - weight, weight
        if abs(cosine) > _STRAIGHT:
            return shares
        angle = torch.arccos(cosine)
        sine = torch.sin(angle)
        first_share, second_share = (torch.sin(share * angle) / sine for share in shares)
        return first_share, second_share


def trim(blocks: CastBlocks, densities: Sequence[float]) -> list[PrunedTaskVector]:
    """Return ``torch_methods.trim`` of every parent."""
    vectors = _gather_task_vectors(blocks)
    room = np.empty(blocks.size, np.uint64)
    for bits, density in zip(vectors, densities, strict=True):
        if density <= 0:
            bits[:] = 0
        elif density < 1:
            deque(_drop(bits, [_find_largest(bits, max(1, int(density * len(bits))), room)]), 0)
    return [PrunedTaskVector(bits) for bits in vectors]


def _find_largest(bits: Array, count: int, room: Array) -> Array:
    keys = _magnitudes(bits)
    mask = select_largest(keys, count, room)
    if mask is None:
        import torch

        signed = torch.from_numpy(keys.view(f"i{keys.itemsize}").astype(np.float32))
        floats = torch.from_numpy(keys.view(np.float32)) if keys.itemsize == 4 else signed
        mask = np.zeros(len(bits), bool)
        mask[torch.argsort(floats, descending=True)[:count].numpy()] = True
    return mask


def _magnitudes(bits: Array) -> Array:
    """Return the bits without signs, as unsigned integers ordered by magnitude."""
    unsigned: Array = bits.view(f"u{bits.itemsize}")
    magnitudes: Array = unsigned & unsigned.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    return magnitudes


def _drop(bits: Array, masks: Iterable[Array]) -> Iterator[Array]:
    """Set dropped elements to zero, each mask being of the part after the last; yield the parts."""
    unsigned, start = bits.view(f"u{bits.itemsize}"), 0
    for mask in masks:
        part = unsigned[start : start + len(mask)]
        part *= mask
        start += len(mask)
        yield part


def _drop_and_rescale(bits: Array, masks: Iterable[Array], *, rescale: bool) -> PrunedTaskVector:
    """Set dropped elements to zero; compute the factor that restores the L1 norm, in bfloat16."""
    if not rescale:
        deque(_drop(bits, masks), 0)
        return PrunedTaskVector(bits)
    parts = range(0, len(bits), _DROP_CHUNK)
    before = _round_norm(bits, [_add_magnitudes(bits[at : at + _DROP_CHUNK]) for at in parts])
    after = _round_norm(bits, [_add_magnitudes(part) for part in _drop(bits, masks)])
    if min(before, after) < round_scalar(_NOTHING, "BF16"):
        return PrunedTaskVector(bits)
    return PrunedTaskVector(bits, float(round_scalar(float(before / after), "BF16")))


def _add_magnitudes(bits: Array) -> float:
    values, ones = widen(_magnitudes(bits), "BF16"), np.ones(_ADDENDS, np.float32)
    whole = len(values) // _ADDENDS * _ADDENDS
    sums = values[:whole].reshape(-1, _ADDENDS) @ ones  # half the time of sum()
    return float(sums.sum(dtype=np.float64) + values[whole:].sum())


def _round_norm(bits: Array, parts: Sequence[float]) -> np.float32:
    """Return torch's L1 norm of bfloat16 values.

    torch adds in float32 and rounds to 8 bits, so its order of summation matters only near a tie.
    """
    norm = math.fsum(parts)
    low, high = (round_scalar(norm * (1 + sign * _SUM_ERROR), "BF16") for sign in (-1, 1))
    return low if low == high else round_scalar(float(sum_bfloat16(_magnitudes(bits))), "BF16")


def random_sparsify(
    blocks: CastBlocks, densities: Sequence[float], draws: TorchGenerator, *, rescale: bool
) -> list[PrunedTaskVector]:
    """Return ``torch_methods.random_sparsify`` of every parent."""
    drawn_in = "BF16" if blocks.kind == "BF16" else "F32"
    pruned = []
    for bits, density in zip(_gather_task_vectors(blocks), densities, strict=True):
        if density >= 1:
            pruned.append(PrunedTaskVector(bits))
            continue
        level = to_draw_levels(np.array([round_scalar(density, drawn_in)]))[0]
        masks = (
            draws.draw(min(_DROP_CHUNK, len(bits) - start)) < level
            for start in range(0, len(bits), _DROP_CHUNK)
        )
        pruned.append(_drop_and_rescale(bits, masks, rescale=rescale))
    return pruned


def magprune(
    blocks: CastBlocks,
    windows: Sequence[tuple[float, float]],
    draws: TorchGenerator,
    *,
    rescale: bool,
) -> list[PrunedTaskVector]:
    """Return ``torch_methods.magprune`` of every parent, in bfloat16."""
    pruned = []
    for bits, (density, epsilon) in zip(_gather_task_vectors(blocks), windows, strict=True):
        if density in {0, 1}:  # mergekit draws nothing
            pruned.append(PrunedTaskVector(bits if density else np.zeros_like(bits)))
            continue
        levels = _levels_by_rank(blocks.context.shape[-1], density, epsilon)
        rows = bits.reshape(-1, len(levels))
        pruned.append(_drop_and_rescale(bits, _keep_by_rank(rows, levels, draws), rescale=rescale))
    return pruned


def _keep_by_rank(bits: Array, levels: Array, draws: TorchGenerator) -> Iterator[Array]:
    """Yield the masks of some rows after others, flat, drawn by every magnitude's rank in its row.

    Most draws lie below or above the levels of all ranks. For the others, the draw says from which
    rank on an element is kept, and the magnitude there decides. Only where an element equals that
    magnitude, and the one a rank below, is the order in which torch sorts equal elements needed.

    Args:
        bits: Rows of bfloat16 values, (rows, width).
        levels: Draw level of every rank, rising, (width,).
        draws: The generator.
    """
    width = len(levels)
    lowest, highest, unit = levels[0], levels[-1], int(np.bitwise_or.reduce(levels))
    shift = np.uint32(max(0, (unit & -unit).bit_length() - 1))  # levels are multiples of 2**shift
    steps = np.arange((int(highest) >> int(shift)) + 1, dtype=np.uint32)
    first_kept = np.searchsorted(levels >> shift, steps, side="right")
    step = max(1, _DROP_CHUNK // width)
    for start in range(0, len(bits), step):
        rows = _magnitudes(bits[start : start + step])
        values, ordered = rows.reshape(-1), np.sort(rows, axis=1).reshape(-1)
        drawn = draws.draw(len(values))
        mask = drawn < lowest
        at = np.flatnonzero((drawn < highest) & ~mask)
        ranks = first_kept[drawn[at] >> shift]
        places = at // width * width + ranks
        value, least = values[at], ordered[places]
        mask[at] = value >= least
        equals = np.flatnonzero((value == least) & (value > 0) & (ranks > 0))
        equals = equals[ordered[places[equals] - 1] == value[equals]]
        at = at[equals]
        mask[at] = _find_ranks(rows, at) >= ranks[equals]
        yield mask


def _find_ranks(rows: Array, at: Array) -> Array:
    """Return the ranks of some elements in their rows, as torch sorts them: not stably.

    Args:
        rows: Magnitudes, (rows, width), uint16.
        at: Indices of the elements in the flattened rows, rising.
    """
    found, columns = np.divmod(at, rows.shape[1])
    needed, inverse = np.unique(found, return_inverse=True)
    # Sorting integers orders ties as torch does for floats, but faster.
    order = argsort_rows(rows[needed].view(np.int16))
    ranks: Array = (order[inverse] == columns[:, None]).argmax(axis=1)
    return ranks


@cache
def _levels_by_rank(width: int, density: float, epsilon: float) -> Array:
    """Return the draw levels from the smallest of a row to the largest, (width,)."""
    ranks = round_to(round_to(np.arange(width, dtype=np.float32), "BF16") + np.float32(1), "BF16")
    span = round_to(ranks[-1:] - ranks[0], "BF16")
    rising = round_to(round_to(ranks - ranks[0], "BF16") / span, "BF16").clip(0, 1)
    raised = round_to(rising * np.float32(2) * np.float32(epsilon), "BF16")
    # torch rounds a number that it adds, but not one by which it multiplies
    return to_draw_levels(round_to(raised + round_scalar(density - epsilon, "BF16"), "BF16"))
