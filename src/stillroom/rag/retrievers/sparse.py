"""Retrieve by learned term weights of passages and query (SPLADE).

Source: Formal et al. 2021, "SPLADE", arXiv:2107.05720: the dot product of both weights over the
vocabulary of a masked language model. The index stores the weights of passages if its recipe names
the model (``store.sparse.model``). Search is exact over all passages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows

__all__ = ["Sparse"]


class Sparse(Retriever):
    """Dot product of learned term weights."""

    paper: ClassVar[str] = "arXiv:2107.05720"

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        return index.search_sparse(query, k)
