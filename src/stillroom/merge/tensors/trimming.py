"""Magnitude trimming: the largest elements of task vectors, over a tensor or a whole model.

Exact and in bounded memory. A sample of the blocks says between which magnitudes the threshold must
lie; one walk counts what is above and gathers the few in between, from which the threshold is
selected, and with it the element at which equal magnitudes stop being kept. Where too many lie in
between they are tallied and walked again; where the sample misled, everything is, bin by bin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TypeAlias

import numpy as np

from stillroom.merge.interfaces import Array, BlockContext, RowBlock, TensorBlocks
from stillroom.merge.tensors.task_vectors import exact_sum, magnitude_bits, task_vectors

__all__ = [
    "MagnitudeBand",
    "TrimThreshold",
    "count_retained",
    "find_bands",
    "find_thresholds",
    "find_thresholds_by_count",
    "l1_rescale_factors",
    "mask_above",
    "trim",
    "trim_to_band",
]

# Two cuts as plain values, the outer one first: what it keeps and the inner one does not.
MagnitudeBand: TypeAlias = "list[tuple[int, str, int] | None]"

_TOP = 0x7FFFFFFF
_BINS = 1 << 20
_SMALL = 1 << 16
_SAMPLE = 1 << 20
_STRIDE = 7
_SIGMAS = 12


@dataclass(frozen=True, slots=True)
class TrimThreshold:
    """Which elements of a task vector are kept: those above a magnitude, and some equal to it.

    ``bits`` is the float32 pattern of the magnitude. Of the elements equal to it, those up to
    element ``index`` of tensor ``name`` are kept, in order of tensor name and element: the rule
    that makes ties stable. ``index`` -1 keeps none of that tensor.
    """

    bits: int
    name: str
    index: int


def mask_above(vector: Array, cut: TrimThreshold, at: BlockContext) -> Array:
    """Return a mask of the elements that the cut keeps."""
    bits = magnitude_bits(vector)
    before = cut.index - at.offset + 1 if at.name == cut.name else int(at.name < cut.name) * _TOP
    if before <= 0:
        keep = bits > cut.bits
    elif before >= bits.size:
        keep = bits >= cut.bits
    else:
        keep = bits > cut.bits
        keep[:before] |= bits[:before] == cut.bits
    return keep.reshape(vector.shape)


def trim(vector: Array, cut: TrimThreshold | None, at: BlockContext) -> Array:
    """Return the vector with all elements set to zero that the cut does not keep."""
    return vector if cut is None else vector * mask_above(vector, cut, at)


def find_thresholds(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    densities: Sequence[float],
) -> list[TrimThreshold | None]:
    """Find which elements make up the ``density`` largest by magnitude, of several vectors at once.

    Args:
        tensors: The tensors that are ranked together, in order of name.
        vectors_of: The vectors of a block, one a density.
        densities: Share of elements to keep of each; 1 or more keeps all.

    Returns:
        One cut a vector; None where everything is kept.
    """
    count = sum(tensor.size for tensor in tensors)
    return find_thresholds_by_count(
        tensors, vectors_of, [count_retained(density, count) for density in densities]
    )


def find_thresholds_by_count(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    counts: Sequence[int],
) -> list[TrimThreshold | None]:
    """Find which elements are the ``counts`` largest by magnitude; else as ``find_thresholds``."""
    count = sum(tensor.size for tensor in tensors)
    searches = [_ThresholdSearch(wanted, count) for wanted in counts]
    if count > _SMALL:
        _narrow(tensors, vectors_of, searches)
    while any(not search.is_done for search in searches):
        _walk(tensors, vectors_of, searches)
    _locate(tensors, vectors_of, searches)
    return [search.cut for search in searches]


def find_bands(
    blocks: TensorBlocks, method: str, densities: Sequence[float], gammas: Sequence[float]
) -> list[MagnitudeBand]:
    """Find the middle of every parent's task vector: below its outliers, above the small elements.

    Args:
        blocks: The tensor.
        method: The method's name, for a missing base.
        densities: Share of elements to keep of each.
        gammas: Share of the largest to leave out of each.
    """

    def vectors_of(block: RowBlock) -> list[Array]:
        vectors = task_vectors(block.base, block.parents, method)[1]
        return [vector for vector in vectors for _ in range(2)]

    counts = []
    for density, gamma in zip(densities, gammas, strict=True):
        outliers = int(gamma * blocks.size)
        counts += [min(blocks.size, outliers + int(density * blocks.size)), outliers]
    cuts = [
        (cut.bits, cut.name, cut.index) if cut else None
        for cut in find_thresholds_by_count([blocks], vectors_of, counts)
    ]
    return [cuts[at : at + 2] for at in range(0, len(cuts), 2)]


def trim_to_band(vector: Array, band: MagnitudeBand, at: BlockContext) -> Array:
    """Return the vector with all elements set to zero that are not within a band."""
    outer, inner = band
    if inner is None:  # the outliers are everything
        return np.zeros_like(vector)
    keep = ~mask_above(vector, TrimThreshold(*inner), at)
    if outer is not None:
        keep &= mask_above(vector, TrimThreshold(*outer), at)
    return vector * keep


def l1_rescale_factors(
    blocks: TensorBlocks, method: str, keep: Callable[[int, Array, BlockContext], Array]
) -> list[float]:
    """Return what each parent's kept elements are multiplied with to keep their tensor's L1 norm.

    Args:
        blocks: The tensor.
        method: The method's name, for a missing base.
        keep: Returns what is kept of the vector of a numbered parent.
    """

    def lengths_of(block: RowBlock) -> list[Array]:
        vectors = task_vectors(block.base, block.parents, method)[1]
        kept = [keep(number, vector, block.at) for number, vector in enumerate(vectors)]
        return [np.abs(vector) for vector in (*vectors, *kept)]

    lengths = exact_sum(blocks, lengths_of)
    half = len(lengths) // 2
    return [
        whole / kept if kept else 1.0
        for whole, kept in zip(lengths[:half], lengths[half:], strict=True)
    ]


@dataclass
class _ThresholdSearch:
    """The search for one vector's cut: it lies within ``low`` and ``high``.

    What a walk finds between them waits in ``parts``, (tensor, offset of the block, magnitudes over
    ``low``). If little does, the threshold is selected from it; if much, it is tallied as it comes,
    so that no more than ``_BINS`` and a block of each thread's ever wait, and walked once more.
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
        """How many of the lowest bits a tally does not tell apart."""
        return max(0, (self.high - self.low + 1).bit_length() - _BINS.bit_length())

    def begin(self) -> None:
        self.above = self.waiting = 0
        self.parts, self.tally = [], None

    def sift(self, bits: Array) -> tuple[int, Array]:
        """Count the magnitudes above the bounds; return that and those within, over ``low``."""
        if (self.low, self.high) == (0, _TOP):
            return 0, bits
        above = int(np.count_nonzero(bits > self.high))
        bits -= np.int32(self.low)  # below the bounds wraps around to what is far above
        return above, bits[bits.view(np.uint32) <= np.uint32(self.high - self.low)]

    def take(self, tensor: int, offset: int, above: int, inside: Array) -> None:
        self.above += above
        self.waiting += len(inside)
        self.parts.append((tensor, offset, inside))
        if self.waiting > _BINS:
            self.add_up()

    def add_up(self) -> None:
        """Tally what waits."""
        if self.tally is None:
            self.tally = np.zeros(((self.high - self.low) >> self.shift) + 1, np.int64)
        if not self.parts:
            return
        waiting = np.concatenate([inside for _, _, inside in self.parts])
        waiting >>= self.shift
        self.tally += np.bincount(waiting, minlength=len(self.tally))
        self.parts, self.waiting = [], 0

    def end(self) -> None:
        """Find the threshold among what was found, or narrow the bounds to one bin."""
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
        place = int(np.searchsorted(downward, rank))
        shift = self.shift
        low = self.low + ((len(tally) - 1 - place) << shift)
        self.low, self.high = low, min(low + (1 << shift) - 1, self.high)
        if shift == 0:
            self.ties = rank - (int(downward[place - 1]) if place else 0)

    def _select(self, rank: int) -> None:
        if not 0 < rank <= self.waiting:
            self._start_again()
            return
        values = np.concatenate([inside for _, _, inside in self.parts])
        found = np.partition(values, self.waiting - rank)[self.waiting - rank]
        self.ties = rank - int(np.count_nonzero(values > found))
        self.low = self.high = self.low + int(found)
        left, number, last = self.ties, -1, -1
        # Threads may have come in any order; every block has left a part, be it empty.
        for tensor, _, inside in sorted(self.parts, key=lambda part: part[:2]):
            number, last = (number + 1 if tensor == last else 0), tensor
            ties = int(np.count_nonzero(inside == found))
            if ties >= left:
                self.spot, self.ties = (tensor, number), left
                break
            left -= ties
        self.parts = []

    def _start_again(self) -> None:
        self.low, self.high = 0, _TOP  # the sample misled


def count_retained(density: float, count: int) -> int:
    """Return how many of so many elements a density keeps; one at least, unless it is 0."""
    return min(count, max(1, int(density * count))) if density > 0 and count else 0


def _narrow(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[_ThresholdSearch],
) -> None:
    """Set bounds from a sample: every few blocks of every tensor, every few elements of those."""
    count = sum(tensor.size for tensor in tensors)
    every = max(1, min(8, sum(len(tensor) for tensor in tensors) // 64))
    stride = max(_STRIDE, math.ceil(count / every / _SAMPLE) | 1)
    samples: list[list[Array]] = [[] for _ in searches]
    first = 0
    for tensor in tensors:
        chosen = range(-first % every, len(tensor), every)
        first += len(tensor)
        for index in chosen:
            for sample, vector in zip(samples, vectors_of(tensor[index]), strict=True):
                sample.append(magnitude_bits(vector.reshape(-1)[::stride]))
    sigmas = _SIGMAS if every > 1 else _SIGMAS // 2
    for search, parts in zip(searches, samples, strict=True):
        if search.is_trivial:
            continue
        drawn = np.sort(np.concatenate(parts))
        share = search.wanted / search.count
        rank = (1 - share) * len(drawn)
        margin = sigmas * math.sqrt(len(drawn) * share * (1 - share)) + 8
        low, high = math.floor(rank - margin), math.ceil(rank + margin)
        search.low = int(drawn[low]) if low >= 0 else 0
        search.high = int(drawn[high]) if high < len(drawn) else _TOP


def _walk(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[_ThresholdSearch],
) -> None:
    """Read everything once: count what is above each search's bounds, gather what is within."""
    going = [search for search in searches if not search.is_done]
    for search in going:
        search.begin()

    lock = Lock()

    def reduce(block: RowBlock, number: int) -> None:
        vectors = zip(searches, vectors_of(block), strict=True)
        found = [s.sift(magnitude_bits(vector)) for s, vector in vectors if not s.is_done]
        with lock:  # counts are whole numbers: the order in which threads come changes none
            for search, (above, inside) in zip(going, found, strict=True):
                search.take(number, block.at.offset, above, inside)

    for number, tensor in enumerate(tensors):
        tensor.each(partial(reduce, number=number))
    for search in going:
        search.end()


def _locate(
    tensors: Sequence[TensorBlocks],
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[_ThresholdSearch],
) -> None:
    """Find the last of the equal magnitudes that is kept, and so the cut."""
    going = []
    for number, search in enumerate(searches):
        if search.wanted == 0 and search.count:
            search.cut = TrimThreshold(_TOP, "", -1)
        elif search.spot is not None:
            tensor, block = search.spot
            _place(search, number, tensors[tensor], block, vectors_of)
        elif not search.is_trivial:
            going.append((number, search))
    for each in tensors:
        if not going:
            return
        asked = tuple(going)
        counts = each.each(partial(_count_ties, vectors_of=vectors_of, searches=asked))
        for (number, search), column in zip(asked, zip(*counts, strict=True), strict=False):
            for block, ties in enumerate(column):
                if ties >= search.ties:
                    _place(search, number, each, block, vectors_of)
                    break
                search.ties -= ties
        going = [(number, search) for number, search in going if search.cut is None]


def _place(
    search: _ThresholdSearch,
    number: int,
    tensor: TensorBlocks,
    block: int,
    vectors_of: Callable[[RowBlock], Sequence[Array]],
) -> None:
    """Set the cut of a search at the last of the ties that it keeps, in a block of a tensor."""
    found = tensor[block]
    ties = np.flatnonzero(magnitude_bits(vectors_of(found)[number]) == search.low)
    search.cut = TrimThreshold(
        search.low, tensor.at.name, found.at.offset + int(ties[search.ties - 1])
    )


def _count_ties(
    block: RowBlock,
    vectors_of: Callable[[RowBlock], Sequence[Array]],
    searches: Sequence[tuple[int, _ThresholdSearch]],
) -> list[int]:
    """Return how many elements equal each search's threshold; where they are would fill memory."""
    vectors = vectors_of(block)
    return [
        int(np.count_nonzero(magnitude_bits(vectors[number]) == search.low))
        for number, search in searches
    ]
