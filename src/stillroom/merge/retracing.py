"""mergekit 0.1.5's arithmetic in numpy, block by block: the bits of ``replicas`` at a fraction.

torch rounds to the tensors' type after every operation, computes each in float32, adds models in
their order, and draws from one Mersenne twister. All that can be had from numpy in a core's cache.
Which of equal magnitudes TIES keeps is what libstdc++'s ``std::sort`` leaves in front: quicksort
from the median of three. Of it only the parts that hold the threshold are done here, as Hoare's
FIND does (CACM 4, 1961, algorithm 65), several elements at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from stillroom.merge.method import Array, Block

__all__ = [
    "KINDS",
    "MOST_ADDED",
    "Draws",
    "Kept",
    "Sums",
    "add_product",
    "add_up",
    "levels_of",
    "ratio",
    "round_one",
    "round_to",
    "select_largest",
    "vector",
]

KINDS = frozenset({"BF16", "F16", "F32"})
"""The storage types that are computed in here."""
MOST_ADDED = 3
"""More models torch adds in groups, and which depends on where an element lies."""
_DRAWN_BITS = 24
_FEW = 16  # std::sort leaves so many to an insertion sort
_CHUNK = 1 << 15
_HALFWAY = np.int64(1 << 28)
_BELOW_FLOAT32 = np.int64((1 << 29) - 1)
_SUM_ERROR = 2.0**-16  # of a float32 sum as torch makes it, with much to spare
_NOTHING = 1e-7

Kept: TypeAlias = "tuple[Array | None, float]"
"""Of one parent: which elements are kept (all where None), (size,), and what they are scaled by."""


def round_to(values: Array, kind: str) -> Array:
    """Round float32 to a storage type and back, in place where there is no narrower numpy type."""
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


def round_one(value: float, kind: str) -> np.float32:
    """Return one number, rounded to a storage type."""
    rounded: np.float32 = round_to(np.array([value], np.float32), kind)[0]
    return rounded


def add_product(total: Array, values: Array, weight: float) -> Array:
    """Return ``total + values * weight`` in float32, rounded once, as a fused operation does.

    The product of two float32 is exact in float64. Their sum is rounded twice, which shows only
    where the first rounding ends halfway between two float32: there its error says which is nearer.
    """
    product = values.astype(np.float64)
    product *= np.float64(np.float32(weight))
    wide = product + total
    halfway = (wide.view(np.int64) & _BELOW_FLOAT32) == _HALFWAY
    if halfway.any():
        at = np.nonzero(halfway)
        added, both, one = total[at].astype(np.float64), wide[at], product[at]
        back = both - one
        error = (one - (both - back)) + (added - back)
        toward = np.where(error > 0, np.inf, -np.inf)
        wide[at] = np.where(error == 0, both, np.nextafter(both, toward))
    with np.errstate(over="ignore"):
        return wide.astype(np.float32)


def vector(block: Block, parent: int, kind: str) -> Array:
    """Return a parent's difference from the base."""
    if block.base is None:
        raise ValueError("a difference needs a base")
    return round_to(block.parents[parent] - block.base, kind)


def add_up(
    block: Block,
    kept: Sequence[Kept],
    kind: str,
    *,
    votes: bool,
    normalize: bool,
    scale: float,
) -> Array:
    """Return the base with the weighted task vectors added: ``replicas.combine`` of one block."""
    size, start = block.parents[0].size, block.at.offset
    shares = [round_one(weight, kind) for weight in block.at.weights]
    weighed = []
    for number, ((mask, factor), share) in enumerate(zip(kept, shares, strict=True)):
        values = vector(block, number, kind)
        if mask is not None:
            values *= mask[start : start + size].reshape(values.shape)
        if factor != 1:
            values *= np.float32(factor)
            values = round_to(values, kind)
        values *= share
        weighed.append(round_to(values, kind))
    mass: Array | np.float32
    if votes:
        total, mass = _vote(weighed, shares)
    else:
        total = _add(weighed)
        mass = round_one(float(_add([np.array(share) for share in shares])), kind)
    total = round_to(total, kind)
    if normalize:
        mass = round_to(mass, kind) if isinstance(mass, np.ndarray) else np.array(mass)
        total = round_to(total / np.where(mass == 0, np.float32(1), mass), kind)
    if scale != 1:
        total = round_to(total * np.float32(scale), kind)
    return round_to(block.base + total, kind)


def _add(arrays: Sequence[Array]) -> Array:
    """Return a sum from nothing, which makes 0 of two negative zeros."""
    total = arrays[0] + np.float32(0)
    for array in arrays[1:]:
        total += array
    return total


def _vote(weighed: Sequence[Array], shares: Sequence[np.float32]) -> tuple[Array, Array]:
    """Return the sums, over the parents that agree with the elected sign, of values and weights."""
    elected = _add(weighed)
    sign = np.ascontiguousarray(elected).view(np.uint32) & np.uint32(0x80000000)
    total, mass = np.zeros_like(elected), np.zeros_like(elected)
    nothing = np.zeros_like(elected)
    for values, share in zip(weighed, shares, strict=True):
        # With the elected sign flipped to +, what agrees is what is positive.
        flipped = (values.view(np.uint32) ^ sign).view(np.float32)
        mass += (flipped > 0) * share
        total += np.maximum(flipped, nothing)
    return (total.view(np.uint32) ^ sign).view(np.float32), mass


class Draws:
    """torch's generator for the processor: the same numbers, several times as fast."""

    def __init__(self, seed: int) -> None:
        """Begin where ``torch.manual_seed`` does."""
        seeded = np.random.RandomState(seed & 0xFFFFFFFF).get_state()
        twister = np.random.MT19937()
        twister.state = {
            "bit_generator": "MT19937",
            "state": {"key": seeded[1], "pos": seeded[2]},
        }
        self._twister = twister
        self._numbers = np.random.Generator(twister)

    @property
    def state(self) -> bytes:
        """Where it stands."""
        state = self._twister.state["state"]
        return bytes(np.append(state["key"], np.uint32(state["pos"])).astype("<u4").tobytes())

    @state.setter
    def state(self, state: bytes) -> None:
        words = np.frombuffer(state, "<u4").astype(np.uint32)
        inner = {"key": words[:-1], "pos": int(words[-1])}
        self._twister.state = {"bit_generator": "MT19937", "state": inner}

    def keep(self, size: int, levels: Array | np.uint64) -> Array:
        """Return which elements a Bernoulli draw keeps, (size,).

        Args:
            size: How many are drawn.
            levels: Of all or of each, (size,), what ``levels_of`` gives of a probability.
        """
        kept = np.empty(size, bool)
        for start in range(0, size, 1 << 16):
            stop = min(start + (1 << 16), size)
            drawn = self._numbers.integers(0, 1 << 32, stop - start, dtype=np.uint32)
            drawn &= np.uint32((1 << _DRAWN_BITS) - 1)
            cut = levels[start:stop] if isinstance(levels, np.ndarray) else np.uint32(levels)
            np.less(drawn, cut, out=kept[start:stop])
        return kept


def levels_of(shares: Array) -> Array:
    """Return how many of the 2**24 numbers that are drawn lie below each probability, uint32."""
    return np.ceil(shares.astype(np.float64) * (1 << _DRAWN_BITS)).astype(np.uint32)


@dataclass
class Sums:
    """The L1 norms of a vector and of what is kept of it, to scale that to the length of all."""

    before: float = 0.0
    after: float = 0.0

    def add(self, values: Array, mask: Array) -> None:
        """Take a block in: its vector, and which elements of it are kept."""
        whole = np.abs(values).reshape(len(values) if values.ndim > 1 else 1, -1)
        self.before += float(whole.sum(axis=1).sum(dtype=np.float64))
        whole *= mask.reshape(whole.shape)
        self.after += float(whole.sum(axis=1).sum(dtype=np.float64))

    def factor(self) -> float | None:
        """Return what scales in bfloat16; None where torch's order of adding decides it.

        torch adds in float32 and rounds the sum to 8 bits, so its order shows only next to a tie.
        """
        rounded = []
        for value in (self.before, self.after):
            low, high = (round_one(value * (1 + at * _SUM_ERROR), "BF16") for at in (-1, 1))
            if low != high:
                return None
            rounded.append(low)
        return ratio(*rounded)


def ratio(before: np.float32, after: np.float32) -> float:
    """Return one bfloat16 over another, or 1 where one of them is nothing."""
    if min(before, after) < round_one(_NOTHING, "BF16"):
        return 1.0
    return float(round_one(before / after, "BF16"))


def select_largest(keys: Array, count: int) -> Array | None:
    """Return which ``count`` elements ``std::sort`` would put first, the largest leading, (size,).

    Args:
        keys: What is sorted by, (size,), uint32 below 2**31.
        count: How many; 1 to size.

    Returns:
        None where so many bad pivots follow each other that ``std::sort`` turns to a heap.
    """
    size = len(keys)
    pairs = keys.astype(np.uint64)
    pairs <<= np.uint64(32)
    pairs |= np.arange(size, dtype=np.uint64)
    low, high, left = 0, size, 2 * (size.bit_length() - 1)
    while high - low > _FEW and low < count:
        if not left:
            return None
        left -= 1
        cut = _partition(pairs, low, high)
        low, high = (low, cut) if count < cut else (cut, high)
    if low < count:
        rest = pairs[low:high]
        order = np.argsort(-(rest >> np.uint64(32)).astype(np.int64), kind="stable")
        pairs[low:high] = rest[order]
    kept = np.zeros(size, bool)
    pairs = pairs[:count]
    pairs &= np.uint64(0xFFFFFFFF)
    kept[pairs.view(np.int64)] = True
    return kept


def _partition(pairs: Array, low: int, high: int) -> int:
    """Part a range by the median of three, as libstdc++ does; return where its second part begins.

    From both ends it looks for elements that are not on the right side, equal ones among them, and
    swaps them, until the two ends meet.
    """
    middle = _find_median(pairs, low + 1, low + (high - low) // 2, high - 1)
    pairs[[low, middle]] = pairs[[middle, low]]
    pivot = int(pairs[low]) >> 32
    up_to, from_on = np.uint64((pivot + 1) << 32), np.uint64(pivot << 32)
    begun, ended, last = low + 1, high, high  # between begun and ended nobody looked yet
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
    # What is left of one end's finds has no partner but in what the other end looked at.
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


def _find_median(pairs: Array, one: int, two: int, three: int) -> int:
    """Return the place of the median of three keys; of equal ones, which libstdc++ takes."""
    a, b, c = (int(pairs[at]) >> 32 for at in (one, two, three))
    if a > b:
        return two if b > c else three if a > c else one
    return one if a > c else three if b > c else two
