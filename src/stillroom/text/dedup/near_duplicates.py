"""Near-duplicate search (deduplication): every pair above a Jaccard threshold, without misses.

An exact self-join of sets by prefix filtering: under any fixed order of all n-grams, two sets of
similarity t or more share one of their first m - ceil(t * m) + 1 (m the set's size), so only sets
that share such an n-gram are compared, and those exactly. Unlike banded MinHash it has no misses,
and it needs no signatures. The order is that of the hashes, except that n-grams found in many
texts come last, so that common phrases produce no candidates.

Sets may lie in a file and are read a block at a time. The n-grams of prefixes are partitioned, in
files of a folder or in memory, and the partitions are joined one by one, so that memory holds a
few numbers a text and three for each near pair. Each n-gram belongs to one partition. Since
prefixes hold the least n-grams of their texts, each is first multiplied by a constant (Knuth, The
Art of Computer Programming 3, 6.4) to make partitions of equal size.

Sources: Chaudhuri, Ganti and Kaushik 2006, doi:10.1109/ICDE.2006.9 (prefix filter); Bayardo, Ma and
Srikant 2007, doi:10.1145/1242572.1242591 (All-Pairs, with the bound on sizes). Differs: the order
is by hash rather than by frequency, with frequent n-grams moved last once they are seen.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from stillroom.text.dedup.shingles import HASH_BITS, ShingleSets, build_shingle_sets, expand_ranges

__all__ = ["Duplicate", "Duplicates", "NgramPartitions", "find_duplicates", "find_near_duplicates"]


Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Similarities = npt.NDArray[np.float64]
_Entries = tuple[Hashes, Positions]
_Pairs = tuple[Positions, Positions, Similarities]
_CROWD_SIZE = 48
"""Number of texts with the same prefix n-gram from which the n-gram is moved last."""

_ROUNDS = 4
_PAIRS = 1 << (64 - HASH_BITS)
_PART_ENTRIES = 1 << 20
"""Prefix n-grams sorted at once: some 100 MB."""

_BLOCK_ENTRIES = 1 << 20
_PAIR_PORTION = 1 << 20
_ROUNDING = 1e-9
_ITERATION_BLOCK = 1 << 12
_EMPTY = -1
_COUNTERS = 1 << 20
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A duplicate text: its index, the index of the text kept, and their similarity."""

    index: int
    kept: int
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """Duplicate texts in order of index, as columns; iteration yields ``Duplicate`` objects.

    Args:
        index: Index of each duplicate, (F,).
        kept: Index of the text kept in its place, (F,).
        similarity: Jaccard similarity of the two, (F,).
    """

    index: Positions
    kept: Positions
    similarity: Similarities

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Duplicate]:
        for start in range(0, len(self), _ITERATION_BLOCK):
            part = slice(start, start + _ITERATION_BLOCK)
            columns = (self.index[part], self.kept[part], self.similarity[part])
            yield from map(Duplicate, *(column.tolist() for column in columns))


def find_duplicates(
    sets: ShingleSets,
    *,
    threshold: float = 0.8,
    order: Sequence[int] | Positions | None = None,
    scratch: Path | None = None,
    also: ShingleSets | None = None,
    groups: Positions | None = None,
) -> Duplicates:
    """Return the near duplicates of kept texts, in order of index.

    Texts are processed in ``order``; each is kept unless its similarity to a kept text reaches the
    threshold, and is then assigned to the nearest of these. So every duplicate is near the text
    that stays, and clusters cannot chain. A text with the same n-grams as an earlier one is treated
    like it. Texts without words are kept.

    Args:
        sets: The texts' n-grams.
        threshold: Minimum Jaccard similarity of a duplicate, in (0, 1].
        order: Every index once, in order of preference; by default ascending. The result does not
            depend on the order of ``sets`` if the texts are processed in the same order.
        scratch: A folder for temporary files, created here and removed at the end; by default
            memory is used.
        also: Second n-grams of each text, whose similarity must reach the threshold, too; the
            similarity of two texts is the lower one. Two empty sets are equal.
        groups: A number of each text, (N,); those of different groups are no duplicates.
    """
    every = np.arange(len(sets))
    rank = np.empty(len(sets), dtype=np.int64)
    rank[every if order is None else np.asarray(order, dtype=np.int64)] = every
    twins = _find_exact_duplicates(sets, rank, also, groups)
    single = np.flatnonzero((twins == every) & (sets.sizes > 0))
    single = single[np.argsort(rank[single])]
    del rank
    falls_to, near = _SelfJoin(sets, single, threshold, scratch, also, groups).settle()
    fallen = np.flatnonzero(falls_to >= 0)
    nearest, similarity = every.copy(), np.ones(len(sets))
    nearest[single[fallen]] = single[falls_to[fallen]]
    similarity[single[fallen]] = near[fallen]
    nearest, similarity = nearest[twins], similarity[twins]
    index = np.flatnonzero(nearest != every)
    return Duplicates(index, nearest[index], similarity[index])


def find_near_duplicates(
    texts: Sequence[str],
    *,
    threshold: float = 0.8,
    scores: Sequence[float] | None = None,
) -> list[Duplicate]:
    """Return the near duplicates of kept texts, in order of index.

    ``threshold`` is the minimum Jaccard similarity of a duplicate, in (0, 1]. Texts with a higher
    score are kept first; by default the first in order.
    """
    order = sorted(range(len(texts)), key=lambda index: (-scores[index] if scores else 0.0, index))
    return list(find_duplicates(build_shingle_sets(texts, n=5), threshold=threshold, order=order))


def _find_exact_duplicates(
    sets: ShingleSets, rank: Positions, also: ShingleSets | None, groups: Positions | None
) -> Positions:
    """Return, for each text, the first text with equal sets in its group, possibly itself."""
    twins = np.arange(len(sets))
    filled = np.flatnonzero(sets.sizes)
    if not len(filled):
        return twins
    keys: list[npt.NDArray[Any]] = [] if groups is None else [groups[filled]]
    for some in (sets, also):
        if some is not None:
            keys += [some.sizes[filled], _mark_sets(some)[filled]]
    by_mark = np.lexsort((rank[filled], *keys))
    ordered = filled[by_mark]
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = False
    for key in keys:
        fresh[1:] |= key[by_mark[1:]] != key[by_mark[:-1]]
    twins[ordered] = ordered[np.maximum.accumulate(np.where(fresh, np.arange(len(ordered)), 0))]
    return twins


def _mark_sets(sets: ShingleSets) -> Hashes:
    """Return a fingerprint of each set, (N,), equal for equal sets; 0 for empty ones."""
    sizes = sets.sizes
    filled = np.flatnonzero(sizes)
    marks = np.zeros(len(sets), dtype=np.uint64)
    for start, stop in _block_edges(sizes[filled]):
        marks[filled[start:stop]] = _fingerprint_sets(sets, filled[start:stop])
    return marks


def _fingerprint_sets(sets: ShingleSets, texts: Positions) -> Hashes:
    """Return a fingerprint of each set in a run of texts, equal for equal sets."""
    first, last = sets.offsets[texts[0]], sets.offsets[texts[-1] + 1]
    mixed = sets.values[first:last] * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    marks: Hashes = np.add.reduceat(mixed, sets.offsets[texts] - first)
    return marks


def _block_edges(counts: Positions) -> Iterator[tuple[int, int]]:
    """Yield splits of a list such that the counts of each piece stay within a block."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _BLOCK_ENTRIES, side="right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


class _SelfJoin:
    """Self-join of selected sets, and the choice of those to keep."""

    def __init__(
        self,
        sets: ShingleSets,
        chosen: Positions,
        threshold: float,
        scratch: Path | None,
        also: ShingleSets | None,
        groups: Positions | None,
    ) -> None:
        """Join ``chosen``, indices of distinct sets in order of preference."""
        self.also = also
        self.groups = None if groups is None else groups[chosen]
        self.sets, self.chosen, self.threshold = sets, chosen, threshold
        self.starts, self.sizes = sets.offsets[chosen], sets.sizes[chosen]
        self.weights = self.sizes if also is None else self.sizes + also.sizes[chosen]
        least = np.ceil(threshold * self.sizes - _ROUNDING).astype(np.int64)
        self.prefixes = self.sizes - np.maximum(least, 1) + 1
        self.parts = max(1, -(-int(self.prefixes.sum()) // _PART_ENTRIES))
        self.frequent: Hashes = np.zeros(0, dtype=np.uint64)
        self.reordered = np.zeros(len(chosen), dtype=bool)
        self.scratch = scratch

    def settle(self) -> tuple[Positions, Similarities]:
        """Return each set's kept neighbor, -1 if it stays itself, and their similarity.

        Numbers are positions in ``chosen``.
        """
        pairs: list[_Pairs] = []
        crowded: list[_Entries] = []
        with NgramPartitions(self.parts, self.scratch) as plain:
            for entries in self._prefix_blocks(np.arange(len(self.chosen))):
                plain.add(*entries)
            plain.sort()
            with contextlib.closing(self._reorder_frequent(plain)) as last:
                for entries in last:
                    left, right, crowd = self._candidates(*entries)
                    pairs += self._verify(left, right)
                    crowded.append(crowd)
        firsts, seconds, near = _concatenate_pairs(pairs)
        del pairs
        order = np.lexsort((firsts, -near, seconds))  # the nearest first, ties by position
        firsts, seconds, near = firsts[order], seconds[order], near[order]
        ngrams = np.concatenate([column for column, _ in crowded])
        values = np.unique(ngrams, return_inverse=True)[1]
        owners = np.concatenate([column for _, column in crowded])
        order = np.argsort(owners, kind="stable")
        crowds, members = values[order], owners[order]
        falls_to = np.full(len(self.chosen), -1, dtype=np.int64)
        similarity = np.zeros(len(self.chosen))
        kept = _CrowdedTexts(self)
        owners = np.union1d(seconds, members)
        for owner, start, stop, begin, end in zip(
            owners.tolist(),
            *_find_spans(seconds, owners),
            *_find_spans(members, owners),
            strict=True,
        ):
            stays = (index for index in range(start, stop) if falls_to[firsts[index]] < 0)
            best = [
                (-float(near[index]), int(firsts[index])) for index in itertools.islice(stays, 1)
            ]
            memberships = crowds[begin:end].tolist()
            best += self._compare(owner, kept.list_near(owner, memberships))
            if best:
                less, falls_to[owner] = min(best)
                similarity[owner] = -less
                continue
            kept.add(owner, memberships)
        return falls_to, similarity

    def _reorder_frequent(self, plain: NgramPartitions) -> Generator[_Entries]:
        """Move n-grams of many prefixes last, a few times; then yield the partitions."""
        for rounds in reversed(range(_ROUNDS + 1)):
            with NgramPartitions(self.parts, self.scratch) as anew:
                for entries in self._prefix_blocks(np.flatnonzero(self.reordered)):
                    anew.add(*entries)
                parts = (self._join_parts(plain, anew, part) for part in range(self.parts))
                fresh = self._note_frequent(parts) if rounds else False
                if not fresh:
                    for part in range(self.parts):
                        yield self._join_parts(plain, anew, part)
                    return

    def _note_frequent(self, parts: Iterable[_Entries]) -> bool:
        """Record the n-grams of many prefixes and their owners; return whether there are any."""
        frequent, touched = [], []
        for values, owners in parts:  # an n-gram is in one partition only
            fresh = _find_crowded(values)
            frequent.append(fresh)
            touched.append(np.unique(owners[np.isin(values, fresh)]))
        every = np.concatenate(frequent)
        self.reordered[np.concatenate(touched)] = True
        self.frequent = np.union1d(self.frequent, every)
        return bool(len(every))

    def _join_parts(self, plain: NgramPartitions, anew: NgramPartitions, part: int) -> _Entries:
        """Return a partition's n-grams, sorted, with the owners of their prefixes."""
        values, owners = plain.read(part)
        stays = ~self.reordered[owners]
        more = anew.read(part)
        if not len(more[0]) and stays.all():
            return values, owners
        values = np.concatenate([values[stays], more[0]])
        owners = np.concatenate([owners[stays], more[1]])
        order = np.argsort(values, kind="stable")
        return values[order], owners[order]

    def _prefix_blocks(self, owners: Positions) -> Iterator[_Entries]:
        """Yield the prefix n-grams of some sets with their owners, a block at a time.

        Either all of the sets are reordered or none.
        """
        if not len(owners):
            return
        is_reordered = bool(self.reordered[owners[0]])
        by_place = owners[np.argsort(self.starts[owners], kind="stable")]  # in file order
        counts = self.sizes if is_reordered else self.prefixes
        for start, stop in _block_edges(counts[by_place]):
            some = by_place[start:stop]
            if is_reordered:
                yield self._reorder(some)
            else:
                values = self.sets.values[expand_ranges(self.starts[some], self.prefixes[some])]
                yield values, np.repeat(some, self.prefixes[some])

    def _reorder(self, owners: Positions) -> _Entries:
        """Return the prefixes of some sets with frequent n-grams last."""
        sizes = self.sizes[owners]
        values = self.sets.values[expand_ranges(self.starts[owners], sizes)]
        whose = np.repeat(np.arange(len(owners)), sizes)
        order = np.argsort(2 * whose + np.isin(values, self.frequent), kind="stable")
        firsts = np.cumsum(sizes) - sizes
        selected = order[expand_ranges(firsts, self.prefixes[owners])]
        return values[selected], owners[whose[selected]]

    def _candidates(
        self, values: Hashes, owners: Positions
    ) -> tuple[Positions, Positions, _Entries]:
        """Return pairs that share an n-gram of a partition, and the owners of each frequent one."""
        crowded = np.isin(values, _find_crowded(values))
        crowd = values[crowded], owners[crowded]
        values, owners = values[~crowded], owners[~crowded]
        codes = []
        for step in range(1, _CROWD_SIZE):
            indices = np.flatnonzero(values[step:] == values[:-step])
            if not len(indices):
                break
            first, second = owners[indices], owners[indices + step]
            small, large = np.sort(np.stack([self.sizes[first], self.sizes[second]]), axis=0)
            fits = small >= self.threshold * large - _ROUNDING
            pair = np.sort(np.stack([first[fits], second[fits]]), axis=0)
            codes.append(pair[0] * len(self.chosen) + pair[1])
        pairs = np.unique(np.concatenate(codes)) if codes else np.zeros(0, dtype=np.int64)
        return pairs // max(len(self.chosen), 1), pairs % max(len(self.chosen), 1), crowd

    def _verify(self, left: Positions, right: Positions) -> Iterator[_Pairs]:
        """Yield the pairs above the threshold with their similarities."""
        for start, stop in self._portions(left, right):
            first, second = left[start:stop], right[start:stop]
            similarity = _compute_jaccard(self.sets, self.chosen[first], self.chosen[second])
            near = similarity >= self.threshold - _ROUNDING
            if self.groups is not None:
                near &= self.groups[first] == self.groups[second]
            if self.also is not None:
                more = _compute_jaccard(self.also, self.chosen[first], self.chosen[second])
                similarity = np.minimum(similarity, more)
                near &= similarity >= self.threshold - _ROUNDING
            yield first[near], second[near], similarity[near]

    def _portions(self, left: Positions, right: Positions) -> Iterator[tuple[int, int]]:
        """Yield splits of a list of pairs such that each piece's n-grams fit into memory."""
        ends = np.cumsum(self.weights[left] + self.weights[right])
        start = 0
        while start < len(left):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + _PAIR_PORTION, side="right"))
            stop = min(max(stop, start + 1), start + _PAIRS)
            yield start, stop
            start = stop

    def _compare(self, owner: int, candidates: set[int]) -> list[tuple[float, int]]:
        """Return those of the others that are near a set."""
        if not candidates:
            return []
        right = np.array(sorted(candidates))
        neighbors, _, similarity = _concatenate_pairs(
            self._verify(right, np.full(len(right), owner))
        )
        return list(zip((-similarity).tolist(), neighbors.tolist(), strict=True))


class _CrowdedTexts:
    """Kept texts by their frequent n-grams, and by the prefixes of their second sets.

    A near text shares one of each, so that those of the smaller number are compared.
    """

    def __init__(self, join: _SelfJoin) -> None:
        self._join = join
        self._by_crowd: dict[int, list[int]] = defaultdict(list)
        self._by_second: dict[int, list[int]] = defaultdict(list)

    def add(self, owner: int, crowds: Sequence[int]) -> None:
        """Add a kept text with its frequent n-grams; one without is found otherwise."""
        for crowd in crowds:
            self._by_crowd[crowd].append(owner)
        for key in self._list_second(owner) if crowds else ():
            self._by_second[key].append(owner)

    def list_near(self, owner: int, crowds: Sequence[int]) -> set[int]:
        """Return the kept texts that may be near one with these frequent n-grams."""
        found = [self._by_crowd[crowd] for crowd in crowds]
        if found and self._join.also is not None:
            second = [self._by_second[key] for key in self._list_second(owner)]
            found = min(found, second, key=lambda lists: sum(map(len, lists)))
        return set(itertools.chain.from_iterable(found))

    def _list_second(self, owner: int) -> list[int]:
        """Return the prefix of the second set of a text; of an empty one, a key of its own."""
        sets = self._join.also
        if sets is None:
            return []
        start, end = sets.offsets[self._join.chosen[owner] :][:2].tolist()
        least = max(math.ceil(self._join.threshold * (end - start) - _ROUNDING), 1)
        values = sets.values[start:end]
        order = np.argsort(self._counts[values % np.uint64(_COUNTERS)], kind="stable")
        prefix: list[int] = values[order[: end - start - least + 1]].tolist()
        return prefix if end > start else [_EMPTY]

    @cached_property
    def _counts(self) -> Positions:
        """The number of second sets with an n-gram, some counted together: rare ones go first."""
        values = () if self._join.also is None else self._join.also.values
        counts = np.zeros(_COUNTERS, dtype=np.int64)
        for start in range(0, len(values), _BLOCK_ENTRIES):
            slots = np.asarray(values[start : start + _BLOCK_ENTRIES]) % np.uint64(_COUNTERS)
            counts += np.bincount(slots.astype(np.int64), minlength=_COUNTERS)
        return counts


def _compute_jaccard(
    sets: ShingleSets, left: Positions, right: Positions
) -> npt.NDArray[np.float64]:
    """Return the Jaccard similarity of each pair of texts; that of two empty sets is 1."""
    keys = np.concatenate([_make_pair_keys(sets, texts) for texts in (left, right)])
    keys.sort(kind="stable")  # merges two sorted runs
    same = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(HASH_BITS)
    shared = np.bincount(same.astype(np.int64), minlength=len(left))
    first, second = (sets.offsets[texts + 1] - sets.offsets[texts] for texts in (left, right))
    either = first + second - shared
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)


def _make_pair_keys(sets: ShingleSets, texts: Positions) -> Hashes:
    starts = sets.offsets[texts]
    sizes = sets.offsets[texts + 1] - starts
    pairs = np.repeat(np.arange(len(texts), dtype=np.uint64), sizes)
    return (pairs << np.uint64(HASH_BITS)) | sets.values[expand_ranges(starts, sizes)]


def _find_spans(ordered: Positions, values: Positions) -> tuple[list[int], list[int]]:
    """Return start and end of each number in a sorted array."""
    left, right = (np.searchsorted(ordered, values, side) for side in _SIDES)
    return left.tolist(), right.tolist()


def _concatenate_pairs(pairs: Iterable[_Pairs]) -> _Pairs:
    none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    first, second, similarity = zip(none, *pairs, strict=True)
    return np.concatenate(first), np.concatenate(second), np.concatenate(similarity)


def _find_crowded(values: Hashes) -> Hashes:
    """Return the values that occur more than ``_CROWD_SIZE`` times in a sorted array."""
    if len(values) <= _CROWD_SIZE:
        return values[:0]
    return np.unique(values[_CROWD_SIZE:][values[_CROWD_SIZE:] == values[:-_CROWD_SIZE]])


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class NgramPartitions:
    """Partitions of (n-gram, owner) rows; a context manager that removes its files."""

    def __init__(self, parts: int, folder: Path | None) -> None:
        """Create empty partitions.

        Without a folder all is in memory.
        """
        self.parts = parts
        self._kept: list[list[Hashes]] = [[] for _ in range(parts)]
        self._folder = None if folder is None else Path(tempfile.mkdtemp(dir=folder))

    def __enter__(self) -> Self:
        """Create the temporary files, which last for the body."""
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def add(self, values: Hashes, owners: Positions) -> None:
        """Partition n-grams, (N,) below 2**48, with their owners, (N,)."""
        part = ((values * _GOLDEN >> np.uint64(48)) * np.uint64(self.parts)) >> np.uint64(16)
        part = part.astype(np.min_scalar_type(self.parts))  # small types use a radix sort
        order = np.argsort(part, kind="stable")
        cuts = np.searchsorted(part[order], np.arange(1, self.parts, dtype=part.dtype))
        for number, rows in enumerate(np.split(_stack_columns(values[order], owners[order]), cuts)):
            self._keep(number, rows)

    def read(self, part: int) -> tuple[Hashes, Positions]:
        """Return the n-grams of a partition, (N,), and their owners, (N,)."""
        blocks = self._kept[part]
        if self._folder is not None and (path := self._path(self._folder, part)).exists():
            blocks = [np.fromfile(path, dtype=np.uint64).reshape(-1, 2)]
        none = np.zeros((0, 2), dtype=np.uint64)
        rows = blocks[0] if len(blocks) == 1 else np.concatenate([none, *blocks])
        return rows[:, 0].copy(), rows[:, 1].astype(np.int64)

    def sort(self) -> None:
        """Sort the n-grams of each partition for reading."""
        for part in range(self.parts):
            values, owners = self.read(part)
            order = np.argsort(values, kind="stable")
            self._kept[part] = []
            if self._folder is not None:
                self._path(self._folder, part).unlink(missing_ok=True)
            self._keep(part, _stack_columns(values[order], owners[order]))

    def _keep(self, part: int, rows: Hashes) -> None:
        if self._folder is None:
            self._kept[part].append(rows)
        else:
            with self._path(self._folder, part).open("ab") as file:
                file.write(rows.tobytes())

    @staticmethod
    def _path(folder: Path, part: int) -> Path:
        return folder / f"{part}.u64"


def _stack_columns(values: Hashes, owners: Positions) -> Hashes:
    return np.stack([values, owners.astype(np.uint64)], axis=1)
