"""Retrieve the passages behind the community reports that fit a query.

Source: the global search of Edge et al. 2024, arXiv:2404.16130. Differs: reports are chosen by
their vectors instead of by a model that reads all of them, and what comes back are the passages
that their statements stand on, by turns from report to report. ``stillroom rag ask --graph`` lets a
model weigh the statements before it answers. A report is used only where every passage under it may
be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.graph.knowledge_graph import interleave_rows, open_graph, rank_reports
from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["GraphGlobal"]


class GraphGlobal(Retriever):
    """By turns from community to community."""

    paper: ClassVar[str] = "arXiv:2404.16130"

    graph: str = Field(description="folder of the graph that 'stillroom rag graph' made")
    level: int = Field(
        0, ge=0, le=20, description="of the communities; 0 are the largest, smaller ones are below"
    )
    reports: int = Field(20, ge=1, le=10_000, description="how many reports are taken")

    @property
    @override
    def moment(self) -> str:
        return open_graph(self.graph).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        graph = open_graph(self.graph)
        sight = graph.meet(index)
        likeness = graph.report_likeness(index.embed_query(query))
        best = rank_reports(graph, sight, likeness, level=self.level, count=self.reports)
        lists = [sight.rows(_list_source_rows(graph, at)) for at in best]
        rows = interleave_rows(lists)[:k]
        return index.hits((row, 1.0 / rank) for rank, row in enumerate(rows, start=1))


def _list_source_rows(graph: KnowledgeGraph, community: int) -> list[int]:
    """Return the sources under a report, in order of its statements."""
    findings = graph.communities[community].report.findings
    return list(dict.fromkeys(row for one in findings for row, _, _ in one.spans))
