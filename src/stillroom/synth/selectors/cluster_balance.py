"""Cluster balance: an equal number of records per embedding cluster.

Source: Vo et al. 2024, arXiv:2405.15613 (balanced sampling of clusters). Differs: one level of
clusters; the unused share of small clusters goes to the others in turn. Within a cluster records
are ordered by score, or by distance from the center.
"""

from __future__ import annotations

from math import isqrt
from typing import ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import EMBEDDER, CandidateSet, Selection, Selector
from stillroom.synth.selection import assign_clusters, make_selection, rank_records

__all__ = ["ClusterBalance"]


class ClusterBalance(Selector):
    """Select from all clusters in turn until the budget is spent."""

    paper: ClassVar[str] = "arXiv:2405.15613"

    budget: int = Field(1000, ge=1, description="number of records to keep")
    clusters: int | None = Field(
        None,
        ge=1,
        description="number of clusters; by default the square root of the number of records",
    )
    embedder: Reference = EMBEDDER
    score: str = Field(
        "",
        description="filter whose score orders a cluster; by default the similarity to its center",
    )

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if len(pool.records) <= self.budget:
            return Selection(tuple(range(len(pool.records))), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        by_rank = np.argsort(ranks)
        count = self.clusters or max(isqrt(len(rows)), 1)
        assignment, centers = assign_clusters(rows[by_rank], count, seed=pool.context.seed)
        queues = []
        for cluster in range(len(centers)):
            members = [int(index) for index in by_rank[assignment == cluster]]
            if not self.score:
                similarity = rows[members] @ centers[cluster]
                order = sorted(
                    range(len(members)),
                    key=lambda index: (-round(float(similarity[index]), 6), index),
                )
                members = [members[index] for index in order]
            queues.append(members)
        queues.sort(key=lambda queue: ranks[queue[0]] if queue else len(ranks))
        selected: list[int] = []
        while len(selected) < self.budget:
            for queue in queues:
                if queue and len(selected) < self.budget:
                    selected.append(queue.pop(0))
        sizes = {index: float(len(queue)) for queue in queues for index in queue}
        return make_selection(pool, selected, "its cluster has had its share", sizes)
