"""Near duplicates among many texts: every pair above a Jaccard similarity, none by luck.

An exact join of sets by prefix filtering: in any one order of all n-grams, two sets of similarity t
or more share one of their first m - ceil(t * m) + 1 (m the set's size), so only sets that share
such an n-gram are compared, and those exactly. Unlike banded MinHash it misses nothing, and it
needs no signatures. The order is that of the hashes, but that n-grams found in many texts come
last, so that phrases that thousands of texts share make no candidates.

Sets may lie in a file: they are read a block at a time, and the n-grams of prefixes are joined a
part of their range at a time, so that memory holds a few numbers a text and what is near.

Sources: Chaudhuri, Ganti and Kaushik 2006, doi:10.1109/ICDE.2006.9 (prefix filter); Bayardo, Ma and
Srikant 2007, doi:10.1145/1242572.1242591 (All-Pairs, with the bound on sizes). Differs: the order
is by hash rather than by frequency, and frequent n-grams are put last where they turn up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.text.shingling import HASH_BITS, ShingleSets, shingle_texts, spread

__all__ = ["Duplicate", "find_duplicates", "find_near_duplicates"]

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

_CROWD = 48
"""Texts that share an n-gram of their prefixes, from which it is put last."""
_ROUNDS = 4
_PAIRS = 1 << (64 - HASH_BITS)
_PART_ENTRIES = 1 << 23
"""N-grams of prefixes that are sorted at once: some 400 MB."""
_BLOCK_ENTRIES = 1 << 21
_PORTION = 1 << 22
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A text that is nearly another: its index, the index of the one kept, and how near."""

    index: int
    kept: int
    similarity: float


def find_duplicates(
    sets: ShingleSets, *, threshold: float = 0.8, order: Sequence[int] | Positions | None = None
) -> list[Duplicate]:
    """Return the texts that are nearly a text that is kept, in order of index.

    Texts are taken in ``order``; each is kept unless its similarity to one already kept reaches the
    threshold, and then falls to the nearest of these. So every duplicate is near the very text that
    stays, and clusters cannot chain. A text whose n-grams are those of an earlier one shares its
    fate. Texts without words are kept.

    Args:
        sets: The texts' n-grams.
        threshold: Least Jaccard similarity of a duplicate, in (0, 1].
        order: Every index once, the one to be kept first; by default as they come. The same texts
            in another order of ``sets``, taken in the same order, give the same outcome.
    """
    taken = np.arange(len(sets)) if order is None else np.asarray(order, dtype=np.int64)
    rank = np.empty(len(sets), dtype=np.int64)
    rank[taken] = np.arange(len(sets))
    twins = _find_twins(sets, rank)
    single = np.flatnonzero((twins == np.arange(len(sets))) & (sets.sizes > 0))
    join = _Join(sets, single[np.argsort(rank[single])], threshold)
    nearest = join.settle()
    found = []
    for index in range(len(sets)):
        kept, similarity = nearest.get(int(twins[index]), (int(twins[index]), 1.0))
        if kept != index:
            found.append(Duplicate(index, kept, similarity))
    return found


def find_near_duplicates(
    texts: Sequence[str],
    *,
    threshold: float = 0.8,
    n: int = 5,
    scores: Sequence[float] | None = None,
) -> list[Duplicate]:
    """Return the texts that are nearly a text that is kept, in order of index.

    Args:
        texts: What to compare.
        threshold: Least Jaccard similarity of a duplicate, in (0, 1].
        n: Words of an n-gram.
        scores: Higher is kept first; by default the first in order.
    """
    order = sorted(range(len(texts)), key=lambda index: (-scores[index] if scores else 0.0, index))
    return find_duplicates(shingle_texts(texts, n=n), threshold=threshold, order=order)


def _find_twins(sets: ShingleSets, rank: Positions) -> Positions:
    """Return for each text the first one with the same set, which may be itself."""
    twins = np.arange(len(sets))
    sizes = sets.sizes
    filled = np.flatnonzero(sizes)
    if not len(filled):
        return twins
    marks = np.concatenate(
        [_mark(sets, filled[start:stop]) for start, stop in _blocks(sizes[filled])]
    )
    by_mark = np.lexsort((rank[filled], sizes[filled], marks))
    ordered, ordered_marks = filled[by_mark], marks[by_mark]
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = (ordered_marks[1:] != ordered_marks[:-1]) | (
        sizes[ordered[1:]] != sizes[ordered[:-1]]
    )
    twins[ordered] = ordered[np.maximum.accumulate(np.where(fresh, np.arange(len(ordered)), 0))]
    return twins


def _mark(sets: ShingleSets, texts: Positions) -> Hashes:
    """Return a number of each set of a run of texts, the same for equal sets."""
    first, last = sets.offsets[texts[0]], sets.offsets[texts[-1] + 1]
    mixed = sets.values[first:last] * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    marks: Hashes = np.add.reduceat(mixed, sets.offsets[texts] - first)
    return marks


def _blocks(counts: Positions) -> Iterator[tuple[int, int]]:
    """Yield where to cut a list so that the counts of each piece stay within a block."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _BLOCK_ENTRIES, side="right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


class _Join:
    """The join of chosen sets with themselves, and what is kept of them."""

    def __init__(self, sets: ShingleSets, chosen: Positions, threshold: float) -> None:
        """Join ``chosen``, indexes of sets that are all different, the one to be kept first."""
        self.sets, self.chosen, self.threshold = sets, chosen, threshold
        self.starts, self.sizes = sets.offsets[chosen], sets.sizes[chosen]
        least = np.ceil(threshold * self.sizes - _ROUNDING).astype(np.int64)
        self.prefixes = self.sizes - np.maximum(least, 1) + 1
        self.parts = max(1, -(-int(self.prefixes.sum()) // _PART_ENTRIES))
        self.frequent: Hashes = np.zeros(0, dtype=np.uint64)
        self.reordered = np.zeros(len(chosen), dtype=bool)
        self._only: tuple[int, tuple[Hashes, Positions]] | None = None

    def settle(self) -> dict[int, tuple[int, float]]:
        """Return the index of each set that falls, with the one that is kept and how near it is."""
        self._find_frequent()
        near: dict[int, list[tuple[float, int]]] = defaultdict(list)
        crowds: dict[int, list[int]] = {}
        member_of: dict[int, list[int]] = defaultdict(list)
        for left, right, crowded in map(self._candidates, range(self.parts)):
            for first, second, similarity in self._verify(left, right):
                near[second].append((-similarity, first))
            for value, owner in crowded:
                crowds.setdefault(value, [])
                member_of[owner].append(value)
        fallen: dict[int, tuple[int, float]] = {}
        for owner in sorted(near.keys() | member_of.keys()):
            found = [pair for pair in near.get(owner, ()) if pair[1] not in fallen]
            found += self._compare(owner, {one for c in member_of[owner] for one in crowds[c]})
            if found:
                similarity, kept = min(found)
                fallen[owner] = kept, -similarity
                continue
            for crowd in member_of[owner]:
                crowds[crowd].append(owner)
        chosen = self.chosen
        return {int(chosen[o]): (int(chosen[kept]), near_) for o, (kept, near_) in fallen.items()}

    def _find_frequent(self) -> None:
        """Put the n-grams last that are in many prefixes, and look again, a few times."""
        for _ in range(_ROUNDS):
            found, touched = [], []
            for part in range(self.parts):  # an n-gram is of one part only
                values, owners = self._entries(part)
                fresh = _crowded(values)
                found.append(fresh)
                touched.append(np.unique(owners[np.isin(values, fresh)]))
            every = np.concatenate(found)
            if not len(every):
                return
            self.reordered[np.concatenate(touched)] = True
            self.frequent = np.union1d(self.frequent, every)

    def _entries(self, part: int) -> tuple[Hashes, Positions]:
        """Return the n-grams of all prefixes that fall into a part, sorted, and whose they are."""
        if self._only is None or self._only[0] != len(self.frequent):
            entries = self._sort_entries(part)
            if self.parts > 1:
                return entries
            self._only = len(self.frequent), entries
        return self._only[1]

    def _sort_entries(self, part: int) -> tuple[Hashes, Positions]:
        pieces = [
            self._choose(part, *entries)
            for is_reordered in (False, True)
            for entries in self._prefix_blocks(np.flatnonzero(self.reordered == is_reordered))
        ]
        if not pieces:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        values = np.concatenate([values for values, _ in pieces])
        owners = np.concatenate([owners for _, owners in pieces])
        order = np.argsort(values, kind="stable")
        return values[order], owners[order]

    def _prefix_blocks(self, owners: Positions) -> Iterator[tuple[Hashes, Positions]]:
        """Yield the n-grams of some sets' prefixes, and whose they are, a block at a time.

        The sets are either all reordered or none.
        """
        if not len(owners):
            return
        is_reordered = bool(self.reordered[owners[0]])
        by_place = owners[np.argsort(self.starts[owners], kind="stable")]  # as the file has them
        counts = self.sizes if is_reordered else self.prefixes
        for start, stop in _blocks(counts[by_place]):
            some = by_place[start:stop]
            if is_reordered:
                yield self._reorder(some)
            else:
                values = self.sets.values[spread(self.starts[some], self.prefixes[some])]
                yield values, np.repeat(some, self.prefixes[some])

    def _choose(self, part: int, values: Hashes, owners: Positions) -> tuple[Hashes, Positions]:
        """Return the entries that fall into a part."""
        if self.parts == 1:
            return values, owners
        mine = (values * np.uint64(self.parts)) >> np.uint64(HASH_BITS) == part
        return values[mine], owners[mine]

    def _reorder(self, owners: Positions) -> tuple[Hashes, Positions]:
        """Return the prefixes of some sets with frequent n-grams last."""
        sizes = self.sizes[owners]
        values = self.sets.values[spread(self.starts[owners], sizes)]
        whose = np.repeat(np.arange(len(owners)), sizes)
        order = np.argsort(2 * whose + np.isin(values, self.frequent), kind="stable")
        firsts = np.cumsum(sizes) - sizes
        kept = order[spread(firsts, self.prefixes[owners])]
        return values[kept], owners[whose[kept]]

    def _candidates(self, part: int) -> tuple[Positions, Positions, Iterator[tuple[int, int]]]:
        """Return the pairs that share an n-gram of a part, and who shares a crowded one."""
        values, owners = self._entries(part)
        crowded = np.isin(values, _crowded(values))
        crowd = zip(values[crowded].tolist(), owners[crowded].tolist(), strict=True)
        values, owners = values[~crowded], owners[~crowded]
        codes = []
        for step in range(1, _CROWD):
            at = np.flatnonzero(values[step:] == values[:-step])
            if not len(at):
                break
            first, second = owners[at], owners[at + step]
            small, large = np.sort(np.stack([self.sizes[first], self.sizes[second]]), axis=0)
            fits = small >= self.threshold * large - _ROUNDING
            pair = np.sort(np.stack([first[fits], second[fits]]), axis=0)
            codes.append(pair[0] * len(self.chosen) + pair[1])
        pairs = np.unique(np.concatenate(codes)) if codes else np.zeros(0, dtype=np.int64)
        return pairs // max(len(self.chosen), 1), pairs % max(len(self.chosen), 1), crowd

    def _verify(self, left: Positions, right: Positions) -> Iterator[tuple[int, int, float]]:
        """Yield the pairs that are near enough."""
        for start, stop in self._portions(left, right):
            one, other = left[start:stop], right[start:stop]
            similarity = self._similarities(one, other)
            near = similarity >= self.threshold - _ROUNDING
            yield from zip(
                one[near].tolist(), other[near].tolist(), similarity[near].tolist(), strict=True
            )

    def _portions(self, left: Positions, right: Positions) -> Iterator[tuple[int, int]]:
        """Yield where to cut a list of pairs so that each piece's n-grams fit into memory."""
        ends = np.cumsum(self.sizes[left] + self.sizes[right])
        start = 0
        while start < len(left):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + _PORTION, side="right"))
            stop = min(max(stop, start + 1), start + _PAIRS)
            yield start, stop
            start = stop

    def _compare(self, owner: int, others: set[int]) -> list[tuple[float, int]]:
        """Return those of the others that a set is near to."""
        if not others:
            return []
        right = np.array(sorted(others))
        found = self._verify(right, np.full(len(right), owner))
        return [(-similarity, first) for first, _, similarity in found]

    def _similarities(self, left: Positions, right: Positions) -> npt.NDArray[np.float64]:
        """Return the Jaccard similarity of each pair."""
        keys = np.concatenate([self._keys(left), self._keys(right)])
        keys.sort()
        same = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(HASH_BITS)
        shared = np.bincount(same.astype(np.int64), minlength=len(left))
        return shared / (self.sizes[left] + self.sizes[right] - shared)

    def _keys(self, owners: Positions) -> Hashes:
        sizes = self.sizes[owners]
        pairs = np.repeat(np.arange(len(owners), dtype=np.uint64), sizes)
        values = self.sets.values[spread(self.starts[owners], sizes)]
        return (pairs << np.uint64(HASH_BITS)) | values


def _crowded(values: Hashes) -> Hashes:
    """Return the values that stand more than ``_CROWD`` times in a sorted array."""
    if len(values) <= _CROWD:
        return values[:0]
    return np.unique(values[_CROWD:][values[_CROWD:] == values[:-_CROWD]])
