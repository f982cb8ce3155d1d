"""Retrieve by BM25 over analyzed words and identifiers; finds names, numbers and rare terms.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
Differs from the paper: idf is Lucene's, above 0; headings count as weighted words. Haystack has it
as InMemoryBM25Retriever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows

__all__ = ["Keyword"]


class Keyword(Retriever):
    """BM25; settings that are None are those of the index."""

    paper: ClassVar[str] = "doi:10.1561/1500000019"

    k1: float | None = Field(None, ge=0, le=10, description="saturation of term frequency")
    b: float | None = Field(None, ge=0, le=1, description="strength of length normalization")

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        return index.search_keyword(query, k, k1=self.k1, b=self.b)
