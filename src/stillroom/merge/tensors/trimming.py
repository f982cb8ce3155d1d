"""Magnitude trimming (``density``): the largest elements of task vectors, per tensor or model.

Exact and in bounded memory. A sample of the blocks bounds the threshold; one pass counts the
elements above and collects the few between the bounds, from which the threshold and the last kept
element among equal magnitudes are selected. If too many lie between, they are counted in bins and
the pass is repeated; if the sample was misleading, all elements are binned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np

from stillroom.merge.interfaces import Array, BlockContext, RowBlock, TensorBlocks
from stillroom.merge.tensors.task_vectors import exact_sum, magnitude_bits, task_vectors

__all__ = [
    "MagnitudeBand",
    "TrimThreshold",
    "find_bands",
    "find_thresholds",
    "find_thresholds_by_count",
    "l1_rescale_factors",
    "mask_above",
    "trim",
    "trim_to_band",
]

_TOP = 0x7FFFFFFF
_BINS = 1 << 20
_HELD = 1 << 21  # of a 135M model 1.6M lie between; counting them would take a pass for ties more
_SMALL = 1 << 16
_SAMPLE = 1 << 20
_STRIDE = 7
_SIGMAS = 12


class TrimThreshold(NamedTuple):
    """Threshold of trimming: keeps elements above a magnitude, and some equal to it.

    ``bits`` are the float32 bits of the magnitude. Equal elements are kept in order of tensor name
    and element, up to ``element`` of tensor ``name``, which makes ties stable; -1 keeps none of
    that tensor.
    """

    bits: int
    name: str
    element: int


MagnitudeBand: TypeAlias = list[TrimThreshold | None]
"""Two thresholds: kept are elements that the first keeps and the second does not."""


def mask_above(vector: Array, threshold: TrimThreshold, context: BlockContext) -> Array:
    """Return a mask of the elements that the threshold keeps; of a journal it is a list."""
    bits = magnitude_bits(vector)
    least, name, last = threshold
    before = last - context.offset + 1 if context.name == name else int(context.name < name) * _TOP
    if before <= 0:
        keep = bits > least
    elif before >= bits.size:
        keep = bits >= least
    else:
        keep = bits > least
        keep[:before] |= bits[:before] == least
    return keep.reshape(vector.shape)


def trim(vector: Array, threshold: TrimThreshold | None, context: BlockContext) -> Array:
    """Set elements that the threshold does not keep to zero."""
    return vector if threshold is None else vector * mask_above(vector, threshold, context)


def find_thresholds(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    densities: Sequence[float],
) -> list[TrimThreshold | None]:
    """Find the thresholds of the ``density`` largest magnitudes of several vectors at once.

    Args:
        tensors: Tensors ranked together, in order of name.
        vectors_of: Returns the vectors of a block, one per density.
        densities: Share of elements to keep per vector; 1 or more keeps all.

    Returns:
        One threshold per vector; None if everything is kept.
    """
    count = sum(tensor.size for tensor in tensors)
    return find_thresholds_by_count(
        tensors, vectors_of, [_count_retained(density, count) for density in densities]
    )


def find_thresholds_by_count(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    counts: Sequence[int],
) -> list[TrimThreshold | None]:
    """As ``find_thresholds``, for the ``counts`` largest elements."""
    count = sum(tensor.size for tensor in tensors)
    searches = [_ThresholdSearch(retained, count) for retained in counts]
    if count > _SMALL:
        _narrow(tensors, vectors_of, searches)
    while any(not search.is_done for search in searches):
        _walk(tensors, vectors_of, searches)
    _locate(tensors, vectors_of, searches)
    return [search.cut for search in searches]


def find_bands(
    blocks: TensorBlocks, method: str, densities: Sequence[float], gammas: Sequence[float]
) -> list[MagnitudeBand]:
    """Find the middle of every parent's task vector: without outliers and small elements.

    Args:
        blocks: The tensor.
        method: Name of the method, for a missing base.
        densities: Share of elements to keep per parent.
        gammas: Share of the largest elements to drop per parent.
    """

    def vectors_of(block: RowBlock) -> list[Array]:
        vectors = task_vectors(block.base, block.parents, method)[1]
        return [vector for vector in vectors for _ in range(2)]

    counts = []
    for density, gamma in zip(densities, gammas, strict=True):
        outliers = int(gamma * blocks.size)
        counts += [min(blocks.size, outliers + int(density * blocks.size)), outliers]
    thresholds = find_thresholds_by_count([blocks], vectors_of, counts)
    return [thresholds[index : index + 2] for index in range(0, len(thresholds), 2)]


def trim_to_band(vector: Array, band: MagnitudeBand, context: BlockContext) -> Array:
    """Set elements outside of a band to zero."""
    outer, inner = band
    if inner is None:  # all elements are outliers
        return np.zeros_like(vector)
    keep = ~mask_above(vector, inner, context)
    if outer is not None:
        keep &= mask_above(vector, outer, context)
    return vector * keep


def l1_rescale_factors(
    blocks: TensorBlocks, method: str, keep: Callable[[int, Array, BlockContext], Array]
) -> list[float]:
    """Return the factor per parent that restores a tensor's L1 norm after pruning.

    Args:
        blocks: The tensor.
        method: Name of the method, for a missing base.
        keep: Prunes the vector of a parent, given its index.
    """

    def lengths_of(block: RowBlock) -> list[Array]:
        vectors = task_vectors(block.base, block.parents, method)[1]
        pruned = [keep(number, vector, block.context) for number, vector in enumerate(vectors)]
        return [np.abs(vector) for vector in (*vectors, *pruned)]

    lengths = exact_sum(blocks, lengths_of)
    half = len(lengths) // 2
    return [
        original / pruned if pruned else 1.0
        for original, pruned in zip(lengths[:half], lengths[half:], strict=True)
    ]


@dataclass
class _ThresholdSearch:
    """Search for one vector's threshold between ``low`` and ``high``.

    A pass collects the elements between them in ``parts``: (tensor, offset of the block, magnitudes
    minus ``low``). If they are few, the threshold is selected from them; if many, they are counted
    in bins as they arrive, so that at most ``_HELD`` and one block per thread are held, and the
    pass is repeated.
    """

    wanted: int
    count: int
    low: int = 0
    high: int = _TOP
    above: int = 0
    ties: int = 0
    cut: TrimThreshold | None = None
    waiting: int = 0
    parts: list[tuple[int, int, Array]] = field(default_factory=list)
    tally: Array | None = None
    spot: tuple[int, int] | None = None

    @property
    def is_trivial(self) -> bool:
        return self.wanted in (0, self.count)

    @property
    def is_done(self) -> bool:
        return self.is_trivial or self.ties > 0

    @property
    def shift(self) -> int:
        """Number of low bits that bins ignore."""
        return max(0, (self.high - self.low + 1).bit_length() - _BINS.bit_length())

    def begin(self) -> None:
        self.above = self.waiting = 0
        self.parts, self.tally = [], None

    def sift(self, bits: Array) -> tuple[int, Array]:
        """Return the number of magnitudes above the bounds, and those within, minus ``low``."""
        if (self.low, self.high) == (0, _TOP):
            return 0, bits
        above = int(np.count_nonzero(bits > self.high))
        bits -= np.int32(self.low)  # values below the bounds wrap around to far above
        return above, bits[bits.view(np.uint32) <= np.uint32(self.high - self.low)]

    def take(self, tensor: int, offset: int, above: int, inside: Array) -> None:
        self.above += above
        self.waiting += len(inside)
        self.parts.append((tensor, offset, inside))
        if self.waiting > _HELD:
            self.add_up()

    def add_up(self) -> None:
        """Count the collected elements in bins."""
        if self.tally is None:
            self.tally = np.zeros(((self.high - self.low) >> self.shift) + 1, np.int64)
        for _, _, inside in self.parts:  # one at a time: bincount widens what it counts to int64
            counts = np.bincount(inside >> self.shift)
            self.tally[: len(counts)] += counts
        self.parts, self.waiting = [], 0

    def end(self) -> None:
        """Select the threshold from the collected elements, or narrow the bounds to one bin."""
        rank = self.wanted - self.above
        if self.tally is not None:
            self.add_up()
            self._narrow(rank, self.tally)
        else:
            self._select(rank)

    def _narrow(self, rank: int, tally: Array) -> None:
        downward = np.cumsum(tally[::-1])
        if not 0 < rank <= downward[-1]:
            self._start_again()
            return
        bin_index = int(np.searchsorted(downward, rank))
        shift = self.shift
        low = self.low + ((len(tally) - 1 - bin_index) << shift)
        self.low, self.high = low, min(low + (1 << shift) - 1, self.high)
        if shift == 0:
            self.ties = rank - (int(downward[bin_index - 1]) if bin_index else 0)

    def _select(self, rank: int) -> None:
        if not 0 < rank <= self.waiting:
            self._start_again()
            return
        values = np.concatenate([inside for _, _, inside in self.parts])
        selected = np.partition(values, self.waiting - rank)[self.waiting - rank]
        self.ties = rank - int(np.count_nonzero(values > selected))
        self.low = self.high = self.low + int(selected)
        remaining, number, last = self.ties, -1, -1
        # Threads append in any order; every block has a part, possibly empty.
        for tensor, _, inside in sorted(self.parts, key=lambda part: part[:2]):
            number, last = (number + 1 if tensor == last else 0), tensor
            ties = int(np.count_nonzero(inside == selected))
            if ties >= remaining:
                self.spot, self.ties = (tensor, number), remaining
                break
            remaining -= ties
        self.parts = []

    def _start_again(self) -> None:
        self.low, self.high = 0, _TOP  # the sample was misleading


def _count_retained(density: float, count: int) -> int:
    """Return the number of elements kept by a density; at least one, unless it is 0."""
    return min(count, max(1, int(density * count))) if density > 0 and count else 0


def _narrow(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[_ThresholdSearch],
) -> None:
    """Set bounds from a sample: some elements of some blocks of every tensor."""
    count = sum(tensor.size for tensor in tensors)
    every = max(1, min(8, sum(len(tensor) for tensor in tensors) // 64))
    stride = max(_STRIDE, math.ceil(count / every / _SAMPLE) | 1)
    samples: list[list[Array]] = [[] for _ in searches]
    first = 0
    for tensor in tensors:
        sampled_blocks = range(-first % every, len(tensor), every)
        first += len(tensor)
        for index in sampled_blocks:
            for sample, vector in zip(samples, vectors_of(tensor[index]), strict=True):
                sample.append(magnitude_bits(vector.reshape(-1)[::stride]))
    sigmas = _SIGMAS if every > 1 else _SIGMAS // 2
    for search, parts in zip(searches, samples, strict=True):
        if search.is_trivial:
            continue
        sample_values = np.sort(np.concatenate(parts))
        share = search.wanted / search.count
        rank = (1 - share) * len(sample_values)
        margin = sigmas * math.sqrt(len(sample_values) * share * (1 - share)) + 8
        low, high = math.floor(rank - margin), math.ceil(rank + margin)
        search.low = int(sample_values[low]) if low >= 0 else 0
        search.high = int(sample_values[high]) if high < len(sample_values) else _TOP


def _walk(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[_ThresholdSearch],
) -> None:
    """Read all blocks once: count elements above each search's bounds, collect those within."""
    active = [search for search in searches if not search.is_done]
    for search in active:
        search.begin()

    lock = Lock()

    def reduce(block: RowBlock, number: int) -> None:
        vectors = zip(searches, vectors_of(block), strict=True)
        counted = [s.sift(magnitude_bits(vector)) for s, vector in vectors if not s.is_done]
        with lock:  # integer counts do not depend on the order of threads
            for search, (above, inside) in zip(active, counted, strict=True):
                search.take(number, block.context.offset, above, inside)

    for number, tensor in enumerate(tensors):
        tensor.each(partial(reduce, number=number))
    for search in active:
        search.end()


def _locate(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[_ThresholdSearch],
) -> None:
    """Find the last kept element among equal magnitudes, and set the thresholds."""
    active = []
    for number, search in enumerate(searches):
        if search.wanted == 0 and search.count:
            search.cut = TrimThreshold(_TOP, "", -1)
        elif search.spot is not None:
            tensor, block = search.spot
            _place(search, number, tensors[tensor], block, vectors_of)
        elif not search.is_trivial:
            active.append((number, search))
    for tensor_blocks in tensors:
        if not active:
            return
        pending = tuple(active)
        counts = tensor_blocks.each(partial(_count_ties, vectors_of=vectors_of, searches=pending))
        for (number, search), column in zip(pending, zip(*counts, strict=True), strict=False):
            for block, ties in enumerate(column):
                if ties >= search.ties:
                    _place(search, number, tensor_blocks, block, vectors_of)
                    break
                search.ties -= ties
        active = [(number, search) for number, search in active if search.cut is None]


def _place(
    search: _ThresholdSearch,
    number: int,
    tensor: TensorBlocks,
    block: int,
    vectors_of: Callable[[RowBlock], Sequence[Array]],
) -> None:
    """Set the threshold of a search at its last kept tie, in a block of a tensor."""
    row_block = tensor[block]
    ties = np.flatnonzero(magnitude_bits(vectors_of(row_block)[number]) == search.low)
    search.cut = TrimThreshold(
        search.low, tensor.context.name, row_block.context.offset + int(ties[search.ties - 1])
    )


def _count_ties(
    block: RowBlock,
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[tuple[int, _ThresholdSearch]],
) -> list[int]:
    """Count the elements equal to each search's threshold; listing them would need memory."""
    vectors = vectors_of(block)
    return [
        int(np.count_nonzero(magnitude_bits(vectors[number]) == search.low))
        for number, search in searches
    ]
