"""Diverse best: the highest scores, with semantic deduplication against those selected (DEITA).

Source: Liu et al. 2023, arXiv:2312.15685 (DEITA's score-first, diversity-aware selection): records
by complexity times quality, each kept if its cosine to all selected ones is at most ``threshold``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import EMBEDDER, CandidateSet, FilterResult, Selection, Selector
from stillroom.synth.selection import (
    BEYOND_BUDGET,
    cover_greedily,
    format_record,
    make_selection,
    rank_records,
)

__all__ = ["DiverseBest"]


class DiverseBest(Selector):
    """Select by score, skipping records similar to a better one."""

    paper: ClassVar[str] = "arXiv:2312.15685"

    budget: int = Field(1000, ge=1, description="number of records to keep")
    score: str = Field("deita", description="filter whose score ranks the records")
    threshold: float = Field(0.9, gt=-1, le=1, description="maximum cosine to a selected record")
    embedder: Reference = EMBEDDER

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if not pool.records:
            return Selection((), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        selected: list[int] = []
        dropped: dict[int, FilterResult] = {}
        for index, nearest, similarity in cover_greedily(rows, order, self.threshold):
            if len(selected) == self.budget:
                break
            if nearest < 0:
                selected.append(index)
            else:
                like = format_record(pool, nearest)
                dropped[index] = FilterResult(
                    False, "resembles a better one", similarity, self.threshold, against=like
                )
        scores = {index: row.get(self.score, 0.0) for index, row in enumerate(pool.scores)}
        rest = make_selection(pool, (*selected, *dropped), BEYOND_BUDGET, scores)
        return Selection(tuple(selected), dropped | dict(rest.dropped))
