"""Diverse best: the highest scores, without records similar to one already selected.

Source: Liu et al. 2023, arXiv:2312.15685 (DEITA's score-first, diversity-aware selection): records
by complexity times quality, each kept if its cosine to all chosen ones is at most ``threshold``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import CandidateSet, FilterResult, Selection, Selector
from stillroom.synth.selection import BEYOND_BUDGET, cover_greedily, format_record, rank_records

__all__ = ["DiverseBest"]


class DiverseBest(Selector):
    """Chooses by score, and passes over what resembles a better record."""

    paper: ClassVar[str] = "arXiv:2312.15685"

    budget: int = Field(1000, ge=1, description="how many records are kept")
    score: str = Field("deita", description="filter whose score ranks the records")
    threshold: float = Field(0.9, gt=-1, le=1, description="highest cosine to a chosen record")
    embedder: Reference = Field(
        "hub:sentence-transformers/all-MiniLM-L6-v2", description="what tells likeness"
    )

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if not pool.records:
            return Selection((), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        kept: list[int] = []
        dropped: dict[int, FilterResult] = {}
        for at, other, near in cover_greedily(rows, order, self.threshold):
            if len(kept) == self.budget:
                break
            if other < 0:
                kept.append(at)
            else:
                like = format_record(pool, other)
                dropped[at] = FilterResult(
                    False, "resembles a better one", near, self.threshold, against=like
                )
        chosen = set(kept)
        for at in range(len(ranks)):
            if at not in dropped and at not in chosen:
                dropped[at] = FilterResult(
                    False, BEYOND_BUDGET, pool.scores[at].get(self.score, 0.0)
                )
        return Selection(tuple(kept), dropped)
