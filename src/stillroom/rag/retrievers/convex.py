"""Fuse keyword and dense scores by a convex combination (``ranking.fuse_scores``); the default.

Source: Bruch, Gai and Ingber 2022, "An Analysis of Fusion Functions for Hybrid Retrieval",
arXiv:2210.11934: alpha * n(dense) + (1 - alpha) * n(keyword), where n maps a list's scores to 0 to
1 by its lowest and highest; a passage missing from a list scores 0 there. Differs from the paper:
the lists are cut at a depth, scores that one of them lacks are not computed, and the keyword list
weighs less where its best passage has few of the query's words, since n makes that one 1 however
poor it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.interfaces import HybridRetriever
from stillroom.rag.retrieval.ranking import fuse_scores
from stillroom.rag.types import get_text_with_headings

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import Query
    from stillroom.rag.types import RankedRows

__all__ = ["Convex"]


class Convex(HybridRetriever):
    """Weighted sum of the normalized scores of a keyword and a dense list."""

    paper: ClassVar[str] = "arXiv:2210.11934"

    alpha: float = Field(0.5, ge=0, le=1, description="weight of the dense list; keyword the rest")
    coverage: float = Field(
        0.6,
        ge=0,
        le=1,
        description="share of the query's words, by idf, that the best keyword passage has at "
        "least; the keyword list's weight falls in proportion below it; 0: never",
    )
    depth: int = Field(100, ge=1, le=10_000, description="number of hits of each list to fuse")

    @override
    def fuse(self, rankings: Sequence[RankedRows], query: Query, index: Index) -> RankedRows:
        weight = 1 - self.alpha
        if self.coverage and 0 < self.alpha < 1 and self.words == "keyword" and rankings[0]:
            best = index.passage_at(rankings[0][0][0])
            overlap = QuestionOverlap(index, query.text)
            if overlap.total:
                share = overlap(get_text_with_headings(best)) / overlap.total
                weight *= min(1.0, share / self.coverage)
        return fuse_scores(rankings, [weight, self.alpha])
