"""Cluster balance: an equal number of records per embedding cluster.

Source: Vo et al. 2024, arXiv:2405.15613 (balanced sampling of clusters). Differs: one level of
clusters; what small clusters leave of their share goes to the others in turn. Within a cluster the
order is by score, or from the center outwards.
"""

from __future__ import annotations

from math import isqrt
from typing import ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import CandidateSet, Selection, Selector
from stillroom.synth.selection import assign_clusters, make_selection, rank_records

__all__ = ["ClusterBalance"]


class ClusterBalance(Selector):
    """Chooses from all clusters in turn until the budget is spent."""

    paper: ClassVar[str] = "arXiv:2405.15613"

    budget: int = Field(1000, ge=1, description="how many records are kept")
    clusters: int | None = Field(
        None, ge=1, description="how many clusters; by default the root of the number of records"
    )
    embedder: Reference = Field(
        "hub:sentence-transformers/all-MiniLM-L6-v2", description="what tells likeness"
    )
    score: str = Field(
        "", description="filter whose score orders a cluster; by default nearness to its center"
    )

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if len(pool.records) <= self.budget:
            return Selection(tuple(range(len(pool.records))), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        by_rank = np.argsort(ranks)
        count = self.clusters or max(isqrt(len(rows)), 1)
        held, centers = assign_clusters(rows[by_rank], count, seed=pool.context.seed)
        queues = []
        for cluster in range(len(centers)):
            mine = [int(at) for at in by_rank[held == cluster]]
            if not self.score:
                near = rows[mine] @ centers[cluster]
                order = sorted(range(len(mine)), key=lambda at: (-round(float(near[at]), 6), at))
                mine = [mine[at] for at in order]
            queues.append(mine)
        queues.sort(key=lambda queue: ranks[queue[0]] if queue else len(ranks))
        kept: list[int] = []
        while len(kept) < self.budget:
            for queue in queues:
                if queue and len(kept) < self.budget:
                    kept.append(queue.pop(0))
        sizes = {at: float(len(queue)) for queue in queues for at in queue}
        return make_selection(pool, kept, "its cluster has had its share", sizes)
