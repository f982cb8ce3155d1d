"""Exact nearest vectors by cosine; finds passages that say the same in other words.

Source: Karpukhin et al. 2020, "Dense Passage Retrieval", arXiv:2004.04906. Differs from the paper:
the encoder is any embedder, and the scan is exact (every vector is compared), never approximate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.rag.method import Query, Retriever, search_dense

if TYPE_CHECKING:
    from stillroom.rag.index import Index
    from stillroom.records import Hit

__all__ = ["Dense"]


class Dense(Retriever):
    """Cosine between the query's vector and every passage's."""

    paper: ClassVar[str] = "arXiv:2004.04906"

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        return index.hits(search_dense(index, query, k))
