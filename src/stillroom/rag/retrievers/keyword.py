"""Retrieve by BM25 over analyzed words and identifiers; finds names, numbers and rare terms.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
Differs from the paper: no idf is negative, of no variant; headings count as weighted words. The
five variants are stated in ``stillroom.text.bm25``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, Retriever, search_keyword
from stillroom.text.bm25 import BM25Variant

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["Keyword"]


class Keyword(Retriever):
    """BM25; where a setting is left out, the index's own applies."""

    paper: ClassVar[str] = "doi:10.1561/1500000019"

    k1: float | None = Field(
        None, ge=0, le=10, description="how soon more occurrences stop counting"
    )
    b: float | None = Field(None, ge=0, le=1, description="how much a passage's length counts")
    variant: BM25Variant | None = Field(
        None, description="which BM25: lucene, robertson, atire, bm25l or bm25+"
    )
    delta: float | None = Field(
        None, ge=0, le=10, description="what bm25l and bm25+ put under an occurrence"
    )

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        settings = {name: getattr(self, name) for name in ("k1", "b", "variant", "delta")}
        return index.hits(search_keyword(index, query, k, **settings))
