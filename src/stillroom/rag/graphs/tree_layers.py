"""Layers of a tree: what is near each other becomes one cluster, again and again.

Source: Sarthi et al. 2024, "RAPTOR: Recursive Abstractive Processing for Tree-Organized Retrieval",
arXiv:2401.18059. Differs: the paper reduces vectors by UMAP and fits Gaussian mixtures whose number
is chosen by BIC, each text in one or several clusters. Here each text is tied to its nearest
neighbours by cosine (UMAP's first step too) and Leiden finds the clusters, bounded in size: no
dimension, number or seed to choose, the same for the same vectors, each text in one cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cluster_vectors"]

_BLOCK = 1024


def cluster_vectors(
    vectors: NDArray[np.float32], *, neighbours: int, max_size: int
) -> list[tuple[int, ...]]:
    """Return the clusters of vectors, by number, each vector in one; in order of first members.

    Args:
        vectors: Rows of length 1, (N, D).
        neighbours: To how many nearest ones each is tied, where their cosine is above 0.
        max_size: Most members of a cluster, where Leiden finds how to divide it; what it cannot
            divide is cut in order.

    Raises:
        MissingExtraError: If the library is not installed.
    """
    if len(vectors) <= max_size:
        return [tuple(range(len(vectors)))] if len(vectors) else []
    edges = _tie(vectors, neighbours)
    place: dict[int, int] = {}
    if edges:
        try:
            from graspologic_native import hierarchical_leiden
        except ImportError as error:
            raise MissingExtraError.of(
                "graspologic-native", "graph", "finding the clusters of a tree"
            ) from error
        width = len(str(len(vectors)))
        found = hierarchical_leiden(
            edges=[(f"{a:0{width}}", f"{b:0{width}}", weight) for a, b, weight in edges],
            max_cluster_size=max_size,
            seed=0,
        )
        place = {int(one.node): one.cluster for one in found if one.is_final_cluster}
    clusters: dict[tuple[int, int], list[int]] = {}
    for at in range(len(vectors)):
        key = (0, place[at]) if at in place else (1, at)
        clusters.setdefault(key, []).append(at)
    parts = [
        tuple(members[start : start + max_size])
        for members in clusters.values()
        for start in range(0, len(members), max_size)
    ]
    return sorted(parts)


def _tie(vectors: NDArray[np.float32], neighbours: int) -> list[tuple[int, int, float]]:
    """Return each vector's ties to its nearest others, (smaller, larger, cosine), in order."""
    ties: dict[tuple[int, int], float] = {}
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK])
        likeness = np.round(block @ np.asarray(vectors).T, 5)
        for at, row in enumerate(likeness, start=start):
            row[at] = -1.0
            for other in _nearest(row, neighbours):
                if row[other] > 0:
                    ties[min(at, other), max(at, other)] = float(row[other])
    return [(one, other, weight) for (one, other), weight in sorted(ties.items())]


def _nearest(row: NDArray[np.float32], count: int) -> Sequence[int]:
    """Return the numbers of the highest cosines, those of equals that come first."""
    count = min(count, len(row))
    limit = np.partition(row, len(row) - count)[len(row) - count]
    found = np.flatnonzero(row >= limit)
    return [int(at) for at in found[np.lexsort((found, -row[found]))][:count]]
