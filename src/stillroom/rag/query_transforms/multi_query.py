"""Search with several rewordings of the query and fuse the results (multi-query, RAG-Fusion).

Source: Rackauckas 2024, "RAG-Fusion: a New Take on Retrieval-Augmented Generation",
arXiv:2402.03367: the hits of all queries are fused by reciprocal rank. The query itself is searched
first, and is the one that rerankers read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, QueryTransform
from stillroom.rag.model_calls import generate_queries

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["MultiQuery"]

_REQUEST = (
    "Write {count} search queries that ask for the same as the question below, each in other words."
    "\n\nQuestion: {query}"
)


class MultiQuery(QueryTransform):
    """The query and a model's rewordings of it."""

    paper: ClassVar[str] = "arXiv:2402.03367"

    rewrites: int = Field(4, ge=1, le=16, description="number of rewordings")
    max_new_tokens: int = Field(
        256, ge=16, le=2048, description="maximum length of the model's answer, in tokens"
    )

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        return generate_queries(
            model,
            query,
            _REQUEST,
            most=self.rewrites,
            max_new_tokens=self.max_new_tokens,
            method="multi_query",
        )
