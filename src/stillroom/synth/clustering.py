"""Clusters of vectors, and greedy choices among them; exact, deterministic, in blocks of rows.

All vectors are L2-normalized rows, so that a dot product is a cosine. Memory grows with the number
of rows, never with its square.

Sources: Dhillon and Modha 2001 (spherical k-means); Arthur and Vassilvitskii 2007 (seeding, in
its greedy form); Gonzalez 1985 (farthest first); Minoux 1978 (lazy greedy).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["assign_clusters", "choose_facilities", "choose_farthest", "cover_greedily"]

Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_BLOCK = 4096
_TRIES = 2


def assign_clusters(
    rows: Vectors, count: int, *, seed: int = 0, rounds: int = 20
) -> tuple[Integers, Vectors]:
    """Return each row's cluster, (N,), and the clusters' centers, (count, D), by spherical k-means.

    Args:
        rows: (N, D).
        count: How many clusters; at most N.
        seed: Of the first centers.
        rounds: At most; ends when nothing moves.
    """
    count = min(max(count, 1), len(rows))
    rng = np.random.default_rng(seed)
    centers = _seed_centers(rows, count, rng)
    held = np.full(len(rows), -1, dtype=np.int64)
    for _ in range(rounds):
        found, near = _nearest(rows, centers)
        if np.array_equal(found, held):
            break
        held = found
        for cluster in range(count):
            mine = rows[held == cluster]
            if len(mine):
                total = mine.sum(0, dtype=np.float64)
                size = float(np.linalg.norm(total))
                centers[cluster] = total / size if size else mine[0]
            else:  # an empty cluster takes the row that is worst served
                worst = int(near.argmin())
                centers[cluster], near[worst] = rows[worst], np.inf
    return held, centers


def choose_farthest(
    rows: Vectors, budget: int, first: int, *, tie: Sequence[int] | None = None
) -> Iterator[tuple[int, float]]:
    """Yield rows so that each is farthest from those before it, with its cosine distance to them.

    Greedy k-center: its radius is at most twice the best one.

    Args:
        rows: (N, D).
        budget: How many.
        first: Which row comes first.
        tie: Rank of each row; of equally far ones the lowest comes first.
    """
    order = np.asarray(tie if tie is not None else range(len(rows)))
    gap = np.full(len(rows), np.inf)
    at = first
    for _ in range(min(budget, len(rows))):
        yield at, float(gap[at])
        gap = np.minimum(gap, 1.0 - rows @ rows[at])
        gap[at] = -np.inf
        farthest = np.flatnonzero(gap >= gap.max() - 1e-7)
        at = int(farthest[order[farthest].argmin()])


def choose_facilities(
    rows: Vectors, budget: int, *, tie: Sequence[int] | None = None
) -> Iterator[tuple[int, float]]:
    """Yield rows that serve all rows best, each with what it adds: lazy greedy facility location.

    Maximizes the sum over all rows of the highest cosine (at least 0) to a chosen one; the greedy
    choice reaches 1 - 1/e of the best sum. A bound that was overtaken is computed anew only when it
    comes to the top, since a gain never grows.

    Args:
        rows: (N, D).
        budget: How many.
        tie: Rank of each row; of equal gains the lowest comes first.
    """
    order = list(tie if tie is not None else range(len(rows)))
    served = np.zeros(len(rows))

    def gain(at: int) -> float:
        return float(np.maximum(rows @ rows[at] - served, 0.0).sum(dtype=np.float64))

    heap = []
    for start in range(0, len(rows), _BLOCK):
        block = np.maximum(rows @ rows[start : start + _BLOCK].T, 0.0).sum(0, dtype=np.float64)
        heap += [(-round(float(v), 6), order[start + i], start + i) for i, v in enumerate(block)]
    heapq.heapify(heap)
    for _ in range(min(budget, len(rows))):
        at, added = _pop_best(heap, gain)
        served = np.maximum(served, rows @ rows[at])
        yield at, added


def _pop_best(
    heap: list[tuple[float, int, int]], gain: Callable[[int], float]
) -> tuple[int, float]:
    while True:
        _, rank, at = heapq.heappop(heap)
        fresh = round(gain(at), 6)
        if not heap or (-fresh, rank) <= heap[0][:2]:
            return at, fresh
        heapq.heappush(heap, (-fresh, rank, at))


def cover_greedily(
    rows: Vectors, order: Sequence[int], limit: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, nearest kept row or -1, cosine) in order; a row near a kept one is not kept.

    A row is kept if no kept row is nearer than ``limit``; so nothing falls to what itself fell.

    Args:
        rows: (N, D).
        order: In which rows are looked at.
        limit: Cosine above which a row falls.
    """
    kept: list[int] = []
    block = np.empty((0, rows.shape[1]), dtype=np.float32)
    for at in order:
        place, near = -1, -1.0
        if kept:
            likeness = block[: len(kept)] @ rows[at]
            place = int(likeness.argmax())
            near = float(likeness[place])
        if near > limit:
            yield at, kept[place], near
            continue
        if len(kept) == len(block):
            block = np.concatenate([block, np.empty((max(len(block), 64), rows.shape[1]), "f4")])
        block[len(kept)] = rows[at]
        kept.append(at)
        yield at, -1, near


def _seed_centers(rows: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """Return first centers, each likelier the farther it is from those before (k-means++).

    Of a few that are drawn for each the one is taken that leaves least distance.
    """
    first = int(rng.integers(len(rows)))
    centers = [rows[first]]
    gap = np.clip(1.0 - rows @ rows[first], 0.0, None)
    tries = _TRIES + int(np.log(count))
    for _ in range(count - 1):
        chances = gap.astype(np.float64)
        total = float(chances.sum())
        if total <= 0:  # every row is a center's own
            centers.append(rows[int(rng.integers(len(rows)))])
            continue
        drawn = np.unique(rng.choice(len(rows), tries, p=chances / total))
        left = np.minimum(gap, np.clip(1.0 - rows[drawn] @ rows.T, 0.0, None))
        best = int(left.sum(1, dtype=np.float64).argmin())
        centers.append(rows[drawn[best]])
        gap = left[best]
    return np.array(centers, dtype=np.float32)


def _nearest(rows: Vectors, centers: Vectors) -> tuple[Integers, npt.NDArray[np.float64]]:
    found = np.empty(len(rows), dtype=np.int64)
    near = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK] @ centers.T
        found[start : start + _BLOCK] = block.argmax(1)
        near[start : start + _BLOCK] = block.max(1)
    return found, near
