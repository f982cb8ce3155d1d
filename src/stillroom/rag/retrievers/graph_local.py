"""Passages around the entities that a query names or means, edge by edge through a graph.

Source: the local search of Edge et al. 2024, arXiv:2404.16130, with the spreading of HippoRAG
(Gutierrez et al. 2024, arXiv:2405.14831). Entities named in the query start with 1, those near its
vector with the square of their cosine; each passes a share on along its edges, and passages are
ranked by the entities they mention. Differs from both: no model is asked, the spreading ends after
a fixed number of hops, and only passages come back, never a description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.graph import open_graph
from stillroom.rag.graph_ranking import rank_passages, spread
from stillroom.rag.method import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.index import Index
    from stillroom.records import Hit

__all__ = ["GraphLocal"]


class GraphLocal(Retriever):
    """The neighbourhood of a query's entities."""

    paper: ClassVar[str] = "arXiv:2404.16130"

    graph: str = Field(description="folder of the graph that 'stillroom rag graph' made")
    entities: int = Field(
        10, ge=1, le=1000, description="how many entities near the query's vector are taken"
    )
    hops: int = Field(2, ge=0, le=5, description="how many edges far from them is looked")
    damping: float = Field(0.5, ge=0, le=1, description="what share goes on from hop to hop")

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        graph = open_graph(self.graph)
        sight = graph.meet(index)
        likeness = graph.likeness(index.embed_query(query))
        near = sight.best(likeness, graph.entities, self.entities)
        seeds = {at: score * score for at, score in near}
        for text in (query.text, *query.keywords):
            named = (at for at in graph.named_in(text) if sight.sees(graph.entities[at]))
            seeds.update((at, 1.0) for at in named)
        active = spread(graph, sight, seeds, hops=self.hops, damping=self.damping)
        return index.hits(rank_passages(graph, sight, active)[:k])
