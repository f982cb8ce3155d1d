"""Retrieve by low-level entities and high-level relations, interleaved (LightRAG).

Source: Guo et al. 2024, "LightRAG: Simple and Fast Retrieval-Augmented Generation",
arXiv:2410.05779. ``local`` finds entities by the low-level keywords, ``global`` relations by the
high-level ones, ``hybrid`` both, and ``mix`` (the default) adds passages by their own vectors; the
lists are interleaved. The transform ``graph_keywords`` generates the keywords with a model; without
it the query itself is used for both. Differs from the paper: only passages are returned, since only
they can be cited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.rag.graph.knowledge_graph import (
    GraphVisibility,
    KnowledgeGraph,
    interleave_rows,
    list_passages,
    open_graph,
)
from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows

__all__ = ["GraphHybrid"]


class GraphHybrid(Retriever):
    """Low-level entities and high-level relations, interleaved."""

    paper: ClassVar[str] = "arXiv:2410.05779"

    graph: str = Field(description="folder of the graph built by 'stillroom rag graph'")
    mode: Literal["local", "global", "hybrid", "mix"] = Field(
        "mix", description="by entities, by relations, by both, or by both and passage vectors"
    )
    depth: int = Field(40, ge=1, le=1000, description="number of entities and of relations")

    @property
    @override
    def moment(self) -> str:
        return open_graph(self.graph).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        graph = open_graph(self.graph)
        visibility = graph.meet(index)
        lists: list[Sequence[int]] = []
        if self.mode in {"local", "hybrid", "mix"}:
            lists.append(
                self._by_entities(
                    graph, visibility, _get_search_texts(query, query.keywords), index
                )
            )
        if self.mode in {"global", "hybrid", "mix"}:
            lists.append(
                self._by_edges(graph, visibility, _get_search_texts(query, query.themes), index)
            )
        if self.mode == "mix":
            lists.append([row for row, _ in index.search_dense(query, k)])
        rows = interleave_rows(lists)[:k]
        return [(row, 1.0 / rank) for rank, row in enumerate(rows, start=1)]

    def _by_entities(
        self, graph: KnowledgeGraph, visibility: GraphVisibility, query: Query, index: Index
    ) -> list[int]:
        scores = graph.likeness(index.embed_query(query))
        best = visibility.best(scores, graph.entities, self.depth)
        return list_passages(visibility, [graph.entities[number].mentions for number, _ in best])

    def _by_edges(
        self, graph: KnowledgeGraph, visibility: GraphVisibility, query: Query, index: Index
    ) -> list[int]:
        scores = graph.edge_likeness(index.embed_query(query))
        best = visibility.best(scores, graph.edges, self.depth)
        return list_passages(visibility, [graph.edges[number].mentions for number, _ in best])


def _get_search_texts(query: Query, words: Sequence[str]) -> Query:
    """Return a query of the keywords where there are any, or the query itself."""
    return Query(", ".join(words)) if words else query
