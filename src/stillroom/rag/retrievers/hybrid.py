"""Keyword and dense retrieval fused by reciprocal rank; the default.

Source: Cormack et al. 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods": weight / (k + rank), rank from 1, absent gives 0, k = 60. Equal scores are
ordered by the best single rank, then by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.fusion import reciprocal_rank
from stillroom.rag.method import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index import Index
    from stillroom.records import Hit

__all__ = ["Hybrid"]


class Hybrid(Retriever):
    """Reciprocal rank fusion of a keyword and a dense list."""

    paper: ClassVar[str] = "doi:10.1145/1571941.1572114"

    rank_constant: float = Field(60.0, ge=0, description="k of the formula: flattens first ranks")
    keyword_weight: float = Field(1.0, ge=0, description="weight of the keyword list")
    dense_weight: float = Field(1.0, ge=0, description="weight of the dense list")
    depth: int = Field(100, ge=1, le=10_000, description="how many of each list are fused")

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        depth = max(self.depth, k)
        legs = [index.search_keyword(query, depth), index.search_dense(query, depth)]
        weights = [self.keyword_weight, self.dense_weight]
        return index.hits(reciprocal_rank(legs, k=self.rank_constant, weights=weights)[:k])
