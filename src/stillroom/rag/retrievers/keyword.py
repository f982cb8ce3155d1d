"""BM25 over analyzed words and identifiers; finds names, numbers and rare terms exactly.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
Differs from the paper: Lucene's idf, which is never negative; headings count as weighted words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.method import Query, Retriever, search_keyword

if TYPE_CHECKING:
    from stillroom.rag.index import Index
    from stillroom.records import Hit

__all__ = ["Keyword"]


class Keyword(Retriever):
    """BM25; where a setting is left out, the index's own applies."""

    paper: ClassVar[str] = "doi:10.1561/1500000019"

    k1: float | None = Field(
        None, ge=0, le=10, description="how soon more occurrences stop counting"
    )
    b: float | None = Field(None, ge=0, le=1, description="how much a passage's length counts")

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        return index.hits(search_keyword(index, query, k, k1=self.k1, b=self.b))
