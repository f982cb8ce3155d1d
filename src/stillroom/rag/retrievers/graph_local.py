"""Retrieve by spreading activation through a graph from a query's entities and passages.

Source: the local search of Edge et al. 2024, arXiv:2404.16130, with the spreading of HippoRAG
(Gutierrez et al. 2024, arXiv:2405.14831; passages as starting points: 2025, arXiv:2502.14802).
Entities that the query names start with 1, those near its vector with the square of their cosine;
the passages that it finds by words and vectors lend theirs a weight of 1 over the rank. Each passes
a share on along its edges, and passages are ranked by the entities they mention and by their own
weight. Differs from both: no model is asked, the spreading ends after a fixed number of hops, and
only passages come back, never a description.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.graph.knowledge_graph import (
    borrow_entities,
    open_graph,
    rank_passages,
    spread_activation,
)
from stillroom.rag.interfaces import Query, Retriever
from stillroom.rag.retrieval.ranking import fuse_scores

if TYPE_CHECKING:
    from stillroom.rag.graph.knowledge_graph import GraphVisibility, KnowledgeGraph
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["GraphLocal"]

_DEPTH = 100


class GraphLocal(Retriever):
    """The neighbourhood of a query's entities."""

    paper: ClassVar[str] = "arXiv:2404.16130"

    graph: str = Field(description="folder of the graph that 'stillroom rag graph' made")
    entities: int = Field(
        10, ge=1, le=1000, description="how many entities near the query's vector are taken"
    )
    passages: int = Field(
        5, ge=0, le=1000, description="how many passages that the query finds lend their entities"
    )
    hops: int = Field(2, ge=0, le=5, description="how many edges far from them is looked")
    damping: float = Field(0.5, ge=0, le=1, description="what share goes on from hop to hop")

    @property
    @override
    def moment(self) -> str:
        return open_graph(self.graph).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        graph = open_graph(self.graph)
        sight = graph.meet(index)
        own = self._find(query, index)
        active = spread_activation(
            graph,
            sight,
            self._seed(query, graph, sight, index, own),
            hops=self.hops,
            damping=self.damping,
        )
        return index.hits(rank_passages(graph, sight, active, own)[:k])

    def _find(self, query: Query, index: Index) -> dict[int, float]:
        """Return what words and vectors find, with 1 over the rank, by index row, best first."""
        if not self.passages:
            return {}
        legs = [index.search_keyword(query, _DEPTH), index.search_dense(query, _DEPTH)]
        fused = fuse_scores(legs, [0.5, 0.5], normalization="minmax", floors=[0.0, 0.0])
        return {row: 1.0 / rank for rank, (row, _) in enumerate(fused, start=1)}

    def _seed(
        self,
        query: Query,
        graph: KnowledgeGraph,
        sight: GraphVisibility,
        index: Index,
        own: Mapping[int, float],
    ) -> dict[int, float]:
        """Return the activation that entities start with."""
        likeness = graph.likeness(index.embed_query(query))
        near = sight.best(likeness, graph.entities, self.entities)
        seeds = {at: score * score for at, score in near}
        for text in (query.text, *query.keywords):
            named = (at for at in graph.named_in(text) if sight.sees(graph.entities[at]))
            seeds.update((at, 1.0) for at in named)
        sources = {
            source: weight
            for row, weight in islice(own.items(), self.passages)
            if (source := graph.source_of(index.passage_at(row).id)) is not None
        }
        for at, weight in borrow_entities(graph, sources).items():
            seeds[at] = seeds.get(at, 0.0) + weight
        return seeds
