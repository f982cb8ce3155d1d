"""Retrieve the nearest vectors by cosine similarity; finds paraphrases.

Source: Karpukhin et al. 2020, "Dense Passage Retrieval", arXiv:2004.04906. Differs from the paper:
the encoder is any embedder; approximate search scans codes of one bit per dimension and rescores
the nearest with full vectors, so that a filter adds no cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows

__all__ = ["Dense"]


class Dense(Retriever):
    """Cosine similarity of the query's vector with every passage's."""

    paper: ClassVar[str] = "arXiv:2004.04906"

    search: Literal["exact", "approximate", "auto"] | None = Field(
        None, description="exact, approximate or auto; by default as in the index's recipe"
    )

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        return index.search_dense(query, k, search=self.search)
