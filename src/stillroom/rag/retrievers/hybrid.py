"""Hybrid search, keyword and dense, by reciprocal rank fusion (``ranking.fuse_reciprocal_ranks``).

Source: Cormack et al. 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods": weight / (k + rank), rank from 1, a missing passage scores 0, k = 60. Equal
scores are ordered by the best single rank, then by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.rag.interfaces import HybridRetriever
from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import Query
    from stillroom.rag.types import RankedRows

__all__ = ["Hybrid"]


class Hybrid(HybridRetriever):
    """Reciprocal rank fusion of a keyword and a dense list."""

    paper: ClassVar[str] = "doi:10.1145/1571941.1572114"

    rank_constant: float = Field(60.0, ge=0, description="k of the formula: flattens top ranks")
    keyword_weight: float = Field(1.0, ge=0, description="weight of the keyword list")
    dense_weight: float = Field(1.0, ge=0, description="weight of the dense list")
    depth: int = Field(100, ge=1, le=10_000, description="number of hits of each list to fuse")

    @model_validator(mode="after")
    def _weighs_a_list(self) -> Hybrid:
        if not (self.keyword_weight or self.dense_weight):
            raise ValueError(
                "both lists have weight 0, so that nothing is ranked: set keyword_weight or "
                "dense_weight"
            )
        return self

    @override
    def fuse(self, rankings: Sequence[RankedRows], query: Query, index: Index) -> RankedRows:
        weights = [self.keyword_weight, self.dense_weight]
        return fuse_reciprocal_ranks(rankings, k=self.rank_constant, weights=weights)
