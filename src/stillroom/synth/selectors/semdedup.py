"""SemDeDup: one record per group of semantic duplicates.

Source: Abbas et al. 2023, arXiv:2303.09540. Embeddings are clustered (spherical k-means, by default
as many clusters as the root of their number) and compared exactly within each cluster; records
above ``threshold`` are one. ``keep: farthest`` looks at those far from the cluster's center first,
as the paper's hard examples. Differs: a record falls only to one that is kept, where the paper's
code also lets it fall to one that itself fell.
"""

from __future__ import annotations

from math import isqrt
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import CandidateSet, FilterResult, Selection, Selector
from stillroom.synth.selection import assign_clusters, cover_greedily, format_record, rank_records

__all__ = ["Semdedup"]


class Semdedup(Selector):
    """Keeps one of each group of records whose embeddings are near each other."""

    paper: ClassVar[str] = "arXiv:2303.09540"

    embedder: Reference = Field(
        "hub:sentence-transformers/all-MiniLM-L6-v2", description="what tells likeness"
    )
    threshold: float = Field(0.9, gt=-1, lt=1, description="cosine above which two records are one")
    clusters: int | None = Field(
        None, ge=1, description="how many clusters; by default the root of the number of records"
    )
    keep: Literal["farthest", "closest", "score"] = Field(
        "farthest", description="which is kept: by distance from the center, or by a score"
    )
    score: str = Field("", description="filter whose score says which is kept, with keep: score")

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if not pool.records:
            return Selection((), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score if self.keep == "score" else "")
        by_rank = np.argsort(ranks)  # so that clusters do not depend on the pool's order
        count = self.clusters or max(isqrt(len(rows)), 1)
        held, centers = assign_clusters(rows[by_rank], count, seed=pool.context.seed)
        kept: list[int] = []
        dropped: dict[int, FilterResult] = {}
        for cluster in range(len(centers)):
            mine = by_rank[held == cluster]
            likeness = rows[mine] @ centers[cluster]
            order = sorted(
                range(len(mine)), key=lambda at: self._key(likeness[at], ranks[mine[at]])
            )
            for at, other, near in cover_greedily(rows[mine], order, self.threshold):
                if other < 0:
                    kept.append(int(mine[at]))
                else:
                    dropped[int(mine[at])] = FilterResult(
                        False,
                        "means the same as one kept",
                        near,
                        self.threshold,
                        against=format_record(pool, int(mine[other])),
                    )
        return Selection(tuple(sorted(kept)), dropped)

    def _key(self, likeness: float, rank: int) -> tuple[float, int]:
        if self.keep == "score":
            return (0.0, rank)
        rounded = round(float(likeness), 6)
        return (rounded if self.keep == "farthest" else -rounded, rank)
