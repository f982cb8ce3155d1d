"""Retrieve by spreading activation through a graph from a query's entities and passages.

Source: the local search of Edge et al. 2024, arXiv:2404.16130, with the spreading of HippoRAG
(Gutierrez et al. 2024, arXiv:2405.14831; passages as starting points: 2025, arXiv:2502.14802).
Entities that the query names start with activation 1, those near its vector with the square of
their cosine; passages found by words and vectors add 1 / rank to their entities. Activation spreads
along the edges with a damping factor, and passages are ranked by the activation of the entities
they mention and by their own score. Differs from both papers: no model is called, the spreading
ends after a fixed number of hops, and only passages are returned, never a description.
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
    from stillroom.rag.types import RankedRows

__all__ = ["GraphLocal"]

_DEPTH = 100


class GraphLocal(Retriever):
    """Passages in the neighborhood of a query's entities."""

    paper: ClassVar[str] = "arXiv:2404.16130"

    graph: str = Field(description="folder of the graph built by a job of kind rag.graph")
    entities: int = Field(
        10, ge=1, le=1000, description="number of entities nearest to the query's vector"
    )
    passages: int = Field(
        5, ge=0, le=1000, description="number of passages whose entities are activated"
    )
    hops: int = Field(2, ge=0, le=5, description="number of edges that activation spreads along")
    damping: float = Field(0.5, ge=0, le=1, description="share of activation passed on at each hop")

    @property
    @override
    def moment(self) -> str:
        return open_graph(self.graph).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        graph = open_graph(self.graph)
        visibility = graph.meet(index)
        passage_scores = self._find(query, index)
        active = spread_activation(
            graph,
            visibility,
            self._seed(query, graph, visibility, index, passage_scores),
            hops=self.hops,
            damping=self.damping,
        )
        return rank_passages(graph, visibility, active, passage_scores)[:k]

    def _find(self, query: Query, index: Index) -> dict[int, float]:
        """Return the fused hits of words and vectors with 1 / rank, by index row, best first."""
        if not self.passages:
            return {}
        rankings = [index.search_keyword(query, _DEPTH), index.search_dense(query, _DEPTH)]
        fused = fuse_scores(rankings, [0.5, 0.5])
        return {row: 1.0 / rank for rank, (row, _) in enumerate(fused, start=1)}

    def _seed(
        self,
        query: Query,
        graph: KnowledgeGraph,
        visibility: GraphVisibility,
        index: Index,
        passage_scores: Mapping[int, float],
    ) -> dict[int, float]:
        """Return the initial activation of entities."""
        similarities = graph.likeness(index.embed_query(query))
        nearest = visibility.best(similarities, graph.entities, self.entities)
        seeds = {entity: score * score for entity, score in nearest}
        seeds.update(
            (entity, 1.0)
            for entity in graph.named_in(query.text)
            if visibility.sees(graph.entities[entity])
        )
        sources = {
            source: weight
            for row, weight in islice(passage_scores.items(), self.passages)
            if (source := graph.source_of(index.passage_at(row).id)) is not None
        }
        for entity, weight in borrow_entities(graph, sources).items():
            seeds[entity] = seeds.get(entity, 0.0) + weight
        return seeds
