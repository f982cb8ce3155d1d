"""What torch's implementation decides, in numpy: random numbers, the order of a sort and of a sum.

torch draws from one Mersenne twister. Which of several equal magnitudes TIES keeps depends on
libstdc++'s ``std::sort``: quicksort with the median of three as pivot. Only the partitions that
contain the threshold are computed here, as in Hoare's FIND (CACM 4, 1961, algorithm 65), several
elements at a time. Sums are added in lanes of a vector register, cascading.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from stillroom.checkpoints.dtypes import widen
from stillroom.merge.interfaces import Array

__all__ = ["TorchGenerator", "select_largest", "sum_bfloat16", "to_draw_levels"]

_DRAWN_BITS = 24
_FEW = 16  # std::sort finishes ranges of this size by insertion sort
_CHUNK = 1 << 15
_LANES = 8  # of a vector of float32 in torch's sums on every x86, with AVX-512 as well
_VECTORS = 4  # added in parallel
_LEVELS = 4


class TorchGenerator:
    """torch's CPU generator: the same numbers, several times as fast."""

    def __init__(self, seed: int) -> None:
        """Seed the generator as ``torch.manual_seed`` does."""
        seeded = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)["state"]
        twister = np.random.MT19937()
        twister.state = {"bit_generator": "MT19937", "state": seeded}
        self._twister = twister

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

    def draw(self, count: int) -> Array:
        """Return the next draws, (count,) uint32 below 2**24.

        A Bernoulli draw is 1 where its number is below the ``to_draw_levels`` of its probability.
        """
        numbers = self._twister.random_raw(count).astype(np.uint32)  # integers() takes a third more
        numbers &= np.uint32((1 << _DRAWN_BITS) - 1)
        return numbers


def to_draw_levels(shares: Array) -> Array:
    """Return how many of the 2**24 possible draws lie below each probability, uint32."""
    return np.ceil(shares.astype(np.float64) * (1 << _DRAWN_BITS)).astype(np.uint32)


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


def sum_bfloat16(bits: Array) -> np.float32:
    """Return torch's sum of bfloat16 values on one thread, before it is rounded to bfloat16.

    Args:
        bits: Stored values, (size,).
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        import torch

        from stillroom.train.precision import limit_threads

        with limit_threads(1):
            shown = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
            return np.float32(float(shown.sum()))
    whole = len(bits) // (2 * _LANES) * (2 * _LANES)
    vectors = widen(bits[:whole], "BF16").reshape(-1, 2, _LANES)
    vectors = vectors[:, 0] + vectors[:, 1]
    rows = len(vectors) // _VECTORS
    columns = _cascade(vectors[: rows * _VECTORS].reshape(rows, _VECTORS, _LANES))
    for vector in vectors[rows * _VECTORS :]:
        columns[0] += vector
    lanes = np.add.reduce(columns, axis=0)
    total = np.float32(0)
    for value in (*widen(bits[whole:], "BF16"), *lanes):
        total += value
    return total


def _cascade(rows: Array) -> Array:
    """Sum rows, (rows, ...): in groups, then groups of those sums, and what each level leaves."""
    step = 1 << max(4, max(len(rows) - 1, 1).bit_length() // _LEVELS)
    total = np.zeros(rows.shape[1:], np.float32)
    for level in range(_LEVELS):
        whole = len(rows) // step * step if level < _LEVELS - 1 else 0
        total += np.add.reduce(rows[whole:], axis=0)
        rows = np.add.reduce(rows[:whole].reshape(-1, step, *rows.shape[1:]), axis=1)
    return total
