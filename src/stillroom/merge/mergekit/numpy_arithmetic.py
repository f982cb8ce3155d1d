"""mergekit 0.1.5's arithmetic in numpy, block by block, bit-exact with torch.

torch rounds to the tensors' type after every operation, computes each in float32, adds models in
order, and draws from one Mersenne twister. numpy reproduces this in a core's cache.

Which of several equal magnitudes TIES keeps depends on libstdc++'s ``std::sort``: quicksort with
the median of three as pivot. Only the partitions that contain the threshold are computed here, as
in Hoare's FIND (CACM 4, 1961, algorithm 65), several elements at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from stillroom.checkpoints.dtypes import widen
from stillroom.merge.interfaces import Array, RowBlock, TensorBlocks

__all__ = [
    "MAX_SUMMANDS",
    "SUPPORTED_DTYPES",
    "CastBlocks",
    "L1Norms",
    "PrunedTaskVector",
    "TorchGenerator",
    "add_task_vectors",
    "compute_task_vector",
    "divide_bfloat16",
    "drop_at_random",
    "drop_by_rank",
    "fused_multiply_add",
    "gather_task_vectors",
    "keep_largest",
    "round_scalar",
    "round_to",
    "scale_block",
    "select_largest",
    "to_draw_levels",
    "to_stored_bits",
]

SUPPORTED_DTYPES = frozenset({"BF16", "F16", "F32"})
"""Supported compute types."""

MAX_SUMMANDS = 3
"""torch adds more models in groups that depend on an element's position."""

_DRAWN_BITS = 24
_FEW = 16  # std::sort finishes ranges of this size by insertion sort
_CHUNK = 1 << 15
_HALFWAY = np.int64(1 << 28)
_BELOW_FLOAT32 = np.int64((1 << 29) - 1)
_SUM_ERROR = 2.0**-16  # generous bound on the relative error of torch's float32 sums
_NOTHING = 1e-7


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


def to_stored_bits(values: Array, kind: str) -> Array:
    """Return rounded float32 values in the storage type, flat, without rounding again."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if kind == "BF16":
        return (flat.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return flat.astype(np.float16) if kind == "F16" else flat


def add_task_vectors(
    block: RowBlock,
    vectors: Sequence[Array],
    kind: str,
    *,
    votes: bool,
    normalize: bool,
    scale: float,
) -> Array:
    """Return a block of ``torch_arithmetic.add_task_vectors``: the base plus weighted task vectors.

    Args:
        block: Base and weights.
        vectors: Task vector of every parent, shaped as the base; may be modified.
        kind: Storage type to which every operation rounds.
        votes: Add only elements that agree with the elected sign.
        normalize: Divide by the summed weights of the added elements.
        scale: Multiplier of the sum.
    """
    shares = [round_scalar(weight, kind) for weight in block.context.weights]
    weighted = []
    for values, share in zip(vectors, shares, strict=True):
        values *= share
        weighted.append(round_to(values, kind))
    mass: Array | np.float32
    if votes:
        total, mass = _vote(weighted, shares)
    else:
        total = _add(weighted)
        mass = round_scalar(float(_add([np.array(share) for share in shares])), kind)
    total = round_to(total, kind)
    if normalize:
        mass = round_to(mass, kind) if isinstance(mass, np.ndarray) else np.array(mass)
        mass += mass == 0
        total /= mass
        total = round_to(total, kind)
    if scale != 1:
        total *= np.float32(scale)
        total = round_to(total, kind)
    total += block.base
    return round_to(total, kind)


def scale_block(pruned: PrunedTaskVector, block: RowBlock, kind: str) -> Array:
    """Return a block of a pruned vector, scaled."""
    shape = block.base.shape if block.base is not None else ()
    bits = pruned.bits[block.context.offset : block.context.offset + int(np.prod(shape))]
    values = bits.copy() if kind == "F32" else widen(bits, kind)
    if pruned.factor != 1:
        values *= np.float32(pruned.factor)
        values = round_to(values, kind)
    return values.reshape(shape)


def _add(arrays: Sequence[Array]) -> Array:
    """Sum arrays, starting from zero, which makes 0 of two negative zeros."""
    total = arrays[0] + np.float32(0)
    for array in arrays[1:]:
        total += array
    return total


def _vote(weighted: Sequence[Array], shares: Sequence[np.float32]) -> tuple[Array, Array]:
    """Sum values and weights over the parents that agree with the elected sign."""
    elected = _add(weighted)
    sign = np.ascontiguousarray(elected).view(np.uint32) & np.uint32(0x80000000)
    total, mass = np.zeros_like(elected), np.zeros_like(elected)
    nothing = np.zeros_like(elected)
    for values, share in zip(weighted, shares, strict=True):
        # With the elected sign flipped to +, positive elements agree with it.
        flipped = (values.view(np.uint32) ^ sign).view(np.float32)
        mass += (flipped > 0) * share
        total += np.maximum(flipped, nothing)
    return (total.view(np.uint32) ^ sign).view(np.float32), mass


class TorchGenerator:
    """torch's CPU generator: the same numbers, several times as fast."""

    def __init__(self, seed: int) -> None:
        """Seed the generator as ``torch.manual_seed`` does."""
        seeded = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)["state"]
        twister = np.random.MT19937()
        twister.state = {"bit_generator": "MT19937", "state": seeded}
        self._twister = twister
        self._numbers = np.random.Generator(twister)

    @property
    def state(self) -> bytes:
        """State of the generator, serialized."""
        state = self._twister.state["state"]
        return bytes(np.append(state["key"], np.uint32(state["pos"])).astype("<u4").tobytes())

    @state.setter
    def state(self, state: bytes) -> None:
        words = np.frombuffer(state, "<u4").astype(np.uint32)
        inner: Any = {"key": words[:-1], "pos": int(words[-1])}
        self._twister.state = {"bit_generator": "MT19937", "state": inner}

    def keep(self, size: int, levels: Array | np.uint64) -> Array:
        """Return the mask of a Bernoulli draw, (size,).

        Args:
            size: Number of elements.
            levels: ``to_draw_levels`` of the probabilities, one for all or one per element (size,).
        """
        mask = np.empty(size, bool)
        for start in range(0, size, 1 << 16):
            stop = min(start + (1 << 16), size)
            numbers = self._numbers.integers(0, 1 << 32, stop - start, dtype=np.uint32)
            numbers &= np.uint32((1 << _DRAWN_BITS) - 1)
            level = levels[start:stop] if isinstance(levels, np.ndarray) else np.uint32(levels)
            np.less(numbers, level, out=mask[start:stop])
        return mask


def to_draw_levels(shares: Array) -> Array:
    """Return how many of the 2**24 possible draws lie below each probability, uint32."""
    return np.ceil(shares.astype(np.float64) * (1 << _DRAWN_BITS)).astype(np.uint32)


@dataclass(frozen=True, slots=True)
class L1Norms:
    """L1 norms of a vector before and after pruning, for rescaling to the original norm."""

    before: float
    after: float

    def factor(self) -> float | None:
        """Return the bfloat16 factor; None if it depends on torch's order of summation.

        torch sums in float32 and rounds to 8 bits, so the order matters only near a tie.
        """
        rounded = []
        for value in (self.before, self.after):
            low, high = (round_scalar(value * (1 + sign * _SUM_ERROR), "BF16") for sign in (-1, 1))
            if low != high:
                return None
            rounded.append(low)
        return divide_bfloat16(*rounded)


def divide_bfloat16(before: np.float32, after: np.float32) -> float:
    """Divide two bfloat16; return 1 if one of them is about zero."""
    if min(before, after) < round_scalar(_NOTHING, "BF16"):
        return 1.0
    return float(round_scalar(float(before / after), "BF16"))


def select_largest(keys: Array, count: int, pairs: Array | None = None) -> Array | None:
    """Return the mask (size,) of the ``count`` elements that ``std::sort`` puts first.

    Args:
        keys: Sort keys in descending order, (size,), unsigned and below 2**31.
        count: Number of elements, 1 to size.
        pairs: Scratch array of (size,) uint64.

    Returns:
        None if ``std::sort`` would switch to heapsort after too many bad pivots.
    """
    size = len(keys)
    pairs = np.empty(size, np.uint64) if pairs is None else pairs
    for start in range(0, size, _CHUNK):
        here = pairs[start : start + _CHUNK]
        here[:] = keys[start : start + _CHUNK]
        here <<= np.uint64(32)
        here |= np.arange(start, start + len(here), dtype=np.uint64)
    low, high, depth_left = 0, size, 2 * (size.bit_length() - 1)
    while high - low > _FEW and low < count:
        if not depth_left:
            return None
        depth_left -= 1
        cut = _partition(pairs, low, high)
        low, high = (low, cut) if count < cut else (cut, high)
    if low < count:
        remaining = pairs[low:high]
        order = np.argsort(-(remaining >> np.uint64(32)).astype(np.int64), kind="stable")
        pairs[low:high] = remaining[order]
    mask = np.zeros(size, bool)
    pairs = pairs[:count]
    pairs &= np.uint64(0xFFFFFFFF)
    mask[pairs.view(np.int64)] = True
    return mask


def _partition(pairs: Array, low: int, high: int) -> int:
    """Partition a range by the median of three as libstdc++ does; return the split index.

    It scans from both ends for elements on the wrong side, including equal ones, and swaps them
    until the scans meet.
    """
    middle = _find_median(pairs, low + 1, low + (high - low) // 2, high - 1)
    pairs[[low, middle]] = pairs[[middle, low]]
    pivot = int(pairs[low]) >> 32
    up_to, from_on = np.uint64((pivot + 1) << 32), np.uint64(pivot << 32)
    begun, ended, last = low + 1, high, high  # elements between begun and ended are unscanned
    lefts = rights = np.zeros(0, np.int64)
    while begun < ended:
        if not len(lefts):
            stop = min(begun + _CHUNK, ended)
            lefts, begun = np.flatnonzero(pairs[begun:stop] < up_to) + begun, stop
        if not len(rights):
            start = max(ended - _CHUNK, begun)
            rights, ended = np.flatnonzero(pairs[start:ended] >= from_on)[::-1] + start, start
        if begun < ended:
            count = min(len(lefts), len(rights))
            last = _swap(pairs, lefts[:count], rights[:count], last)
            lefts, rights = lefts[count:], rights[count:]
    # Remaining candidates of one end can only be paired within the range scanned from the other.
    first = int(lefts[0]) if len(lefts) else begun
    final = int(rights[0]) + 1 if len(rights) else ended
    lefts = np.flatnonzero(pairs[first:final] < up_to) + first
    rights = np.flatnonzero(pairs[first:final] >= from_on)[::-1] + first
    pairing = min(len(lefts), len(rights))
    count = int(np.count_nonzero(lefts[:pairing] < rights[:pairing]))
    last = _swap(pairs, lefts[:count], rights[:count], last)
    if count < len(lefts):
        return min(int(lefts[count]), last)
    return last if count else min(final, last)


def _swap(pairs: Array, lefts: Array, rights: Array, last: int) -> int:
    if not len(lefts):
        return last
    pairs[lefts], pairs[rights] = pairs[rights], pairs[lefts]
    return int(rights[-1])


def _find_median(pairs: Array, first: int, second: int, third: int) -> int:
    """Return the index of the median of three keys; ties resolve as in libstdc++."""
    a, b, c = (int(pairs[index]) >> 32 for index in (first, second, third))
    if a > b:
        return second if b > c else third if a > c else first
    return first if a > c else third if b > c else second


_DROP_CHUNK = 1 << 15


def gather_task_vectors(blocks: CastBlocks) -> list[Array]:
    """Return every parent's task vector in the storage type, (size,)."""
    vectors: list[Array] = [
        np.empty(blocks.size, to_stored_bits(np.zeros(1, np.float32), blocks.kind).dtype)
        for _ in blocks.context.weights
    ]

    def reduce(block: RowBlock) -> None:
        for number, vector in enumerate(vectors):
            flat = to_stored_bits(compute_task_vector(block, number, blocks.kind), blocks.kind)
            vector[block.context.offset : block.context.offset + len(flat)] = flat

    blocks.each(reduce)
    return vectors


def keep_largest(blocks: CastBlocks, densities: Sequence[float]) -> list[PrunedTaskVector]:
    """Return ``torch_arithmetic.keep_largest`` of every parent."""
    vectors = gather_task_vectors(blocks)
    room = np.empty(blocks.size, np.uint64)
    for bits, density in zip(vectors, densities, strict=True):
        if density <= 0:
            bits[:] = 0
        elif density < 1:
            _mask(bits, _find_largest(bits, max(1, int(density * len(bits))), room))
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


def _mask(bits: Array, mask: Array) -> None:
    """Set dropped elements to zero."""
    unsigned = bits.view(f"u{bits.itemsize}")
    for start in range(0, len(bits), _DROP_CHUNK):
        unsigned[start : start + _DROP_CHUNK] *= mask[start : start + _DROP_CHUNK]


def drop_at_random(
    blocks: CastBlocks, densities: Sequence[float], draws: TorchGenerator, *, rescale: bool
) -> list[PrunedTaskVector]:
    """Return ``torch_arithmetic.drop_at_random`` of every parent."""
    drawn_in = "BF16" if blocks.kind == "BF16" else "F32"
    pruned = []
    for bits, density in zip(gather_task_vectors(blocks), densities, strict=True):
        if density >= 1:
            pruned.append(PrunedTaskVector(bits))
            continue
        level = to_draw_levels(np.array([round_scalar(density, drawn_in)]))[0]
        pruned.append(_drop_and_rescale(bits, draws.keep(len(bits), level), rescale=rescale))
    return pruned


def drop_by_rank(
    blocks: CastBlocks,
    windows: Sequence[tuple[float, float]],
    draws: TorchGenerator,
    *,
    rescale: bool,
) -> list[PrunedTaskVector]:
    """Return ``torch_arithmetic.drop_by_rank`` of every parent, in bfloat16."""
    pruned = []
    for bits, (density, epsilon) in zip(gather_task_vectors(blocks), windows, strict=True):
        if density >= 1:
            pruned.append(PrunedTaskVector(bits))
            continue
        levels = _rank_levels(bits, _levels_by_rank(blocks.context.shape[-1], density, epsilon))
        pruned.append(_drop_and_rescale(bits, draws.keep(len(bits), levels), rescale=rescale))
    return pruned


def _rank_levels(bits: Array, by_rank: Array) -> Array:
    """Return the draw level of every element by its magnitude's rank in its row."""
    import torch

    # Sorting integers orders ties as torch does for floats, but faster.
    rows = torch.from_numpy(_magnitudes(bits).view(np.int16)).view(-1, len(by_rank))
    levels = np.empty(len(bits), np.uint32)
    shown = torch.from_numpy(levels.view(np.int32)).view(rows.shape)
    source = torch.from_numpy(by_rank.view(np.int32))
    step = max(1, (1 << 18) // len(by_rank))
    for start in range(0, len(rows), step):
        order = rows[start : start + step].argsort(dim=1)
        shown[start : start + step].scatter_(1, order, source.expand(order.shape))
    return levels


@cache
def _levels_by_rank(width: int, density: float, epsilon: float) -> Array:
    """Return the draw levels from the smallest of a row to the largest, (width,)."""
    import torch

    ranks = torch.arange(width).to(torch.bfloat16) + 1
    least, most = ranks.amin(), ranks.amax()
    rising = ((ranks - least) / (most - least)).clamp(0, 1)
    shares = (density - epsilon) + rising * 2 * epsilon
    return to_draw_levels(shares.float().numpy())


def _drop_and_rescale(bits: Array, mask: Array, *, rescale: bool) -> PrunedTaskVector:
    """Set dropped elements to zero; compute the factor that restores the L1 norm, in bfloat16."""
    if not rescale:
        _mask(bits, mask)
        return PrunedTaskVector(bits)
    before = _add_magnitudes(bits)
    original = bits.copy() if L1Norms(before, before).factor() is None else None
    _mask(bits, mask)
    sums = L1Norms(before, _add_magnitudes(bits))
    factor = sums.factor()
    if factor is None:
        factor = _rescale_with_torch(bits if original is None else original, bits, sums)
    return PrunedTaskVector(bits, factor)


def _add_magnitudes(bits: Array) -> float:
    parts = []
    for start in range(0, len(bits), _DROP_CHUNK):
        values = widen(_magnitudes(bits[start : start + _DROP_CHUNK]), "BF16")
        parts.append(float(values.sum()))
    return math.fsum(parts)


def _rescale_with_torch(before_bits: Array, after_bits: Array, sums: L1Norms) -> float:
    """Return the factor if the order of summation decides one of the sums."""
    import torch

    from stillroom.train.precision import limit_threads

    rounded = []
    with limit_threads(1):
        for bits, value in ((before_bits, sums.before), (after_bits, sums.after)):
            if L1Norms(value, value).factor() is not None:
                rounded.append(round_scalar(value, "BF16"))
                continue
            shown = torch.from_numpy(_magnitudes(bits).view(np.int16)).view(torch.bfloat16)
            rounded.append(np.float32(float(shown.sum())))
    return divide_bfloat16(*rounded)
