"""SemDeDup: semantic deduplication, one record per group of similar embeddings.

Source: Abbas et al. 2023, arXiv:2303.09540 (distilabel: EmbeddingDedup). Embeddings are clustered
(spherical k-means, by default as many clusters as the square root of their number) and compared
exactly within each cluster; records above ``threshold`` are duplicates. ``keep: farthest`` prefers
those far from the cluster's center, as the paper's hard examples. Differs: a record is dropped only
as a duplicate of a kept one, where the paper's code also compares with dropped ones.
"""

from __future__ import annotations

from math import isqrt
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import EMBEDDER, CandidateSet, FilterResult, Selection, Selector
from stillroom.synth.selection import assign_clusters, cover_greedily, format_record, rank_records

__all__ = ["Semdedup"]


class Semdedup(Selector):
    """Keep one record of each group of semantic duplicates."""

    paper: ClassVar[str] = "arXiv:2303.09540"

    embedder: Reference = EMBEDDER
    threshold: float = Field(
        0.9, gt=-1, lt=1, description="cosine above which two records are duplicates"
    )
    clusters: int | None = Field(
        None,
        ge=1,
        description="number of clusters; by default the square root of the number of records",
    )
    keep: Literal["farthest", "closest", "score"] = Field(
        "farthest", description="which record to keep: by distance from the center, or by a score"
    )
    score: str = Field("", description="filter whose score decides, with keep: score")

    @model_validator(mode="after")
    def _check_score(self) -> Self:
        if self.keep == "score" and not self.score:
            raise ValueError("keep: score needs score, the filter whose score decides")
        return self

    @override
    def list_unused(self) -> dict[str, str]:
        names = ("score",) if self.keep != "score" else ()
        return {**super().list_unused(), **dict.fromkeys(names, "set keep: score")}

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if not pool.records:
            return Selection((), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score if self.keep == "score" else "")
        by_rank = np.argsort(ranks)  # clusters must not depend on the pool's order
        count = self.clusters or max(isqrt(len(rows)), 1)
        assignment, centers = assign_clusters(rows[by_rank], count, seed=pool.context.seed)
        selected: list[int] = []
        dropped: dict[int, FilterResult] = {}
        for cluster in range(len(centers)):
            members = by_rank[assignment == cluster]
            likeness = rows[members] @ centers[cluster]
            order = sorted(
                range(len(members)),
                key=lambda index: self._key(likeness[index], ranks[members[index]]),
            )
            for index, nearest, similarity in cover_greedily(rows[members], order, self.threshold):
                if nearest < 0:
                    selected.append(int(members[index]))
                else:
                    dropped[int(members[index])] = FilterResult(
                        False,
                        "means the same as one kept",
                        similarity,
                        self.threshold,
                        against=format_record(pool, int(members[nearest])),
                    )
        return Selection(tuple(sorted(selected)), dropped)

    def _key(self, likeness: float, rank: int) -> tuple[float, int]:
        if self.keep == "score":
            return (0.0, rank)
        rounded = round(float(likeness), 6)
        return (rounded if self.keep == "farthest" else -rounded, rank)
