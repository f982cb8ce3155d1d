"""Retrieve by late interaction of query tokens and passage tokens (ColBERT).

Source: Khattab and Zaharia 2020, "ColBERT", arXiv:2004.12832: the sum over the query's tokens of
the largest dot product with a token of the passage (MaxSim), here their mean. The index stores the
token vectors if its recipe has ``tokens``. Differs from PLAID (Santhanam et al. 2022,
arXiv:2205.09707): candidates are found by words and vectors and not by centroids, and all of them
are scored exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows

__all__ = ["MultiVector"]


class MultiVector(Retriever):
    """MaxSim over the token vectors of an index."""

    paper: ClassVar[str] = "arXiv:2004.12832"

    depth: int = Field(
        200,
        ge=0,
        le=100_000,
        description="number of candidates by words, and by vectors, that are scored; 0 scores all "
        "passages",
    )

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        if not self.depth:
            return index.search_tokens(query, k, None)
        depth = max(self.depth, k)
        rankings = [index.search_keyword(query, depth), index.search_dense(query, depth)]
        rows = sorted({row for ranking in rankings for row, _ in ranking})
        return index.search_tokens(query, k, rows)
