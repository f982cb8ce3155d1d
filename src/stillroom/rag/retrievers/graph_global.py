"""Retrieve the source passages of the community reports that match a query.

Source: the global search of Edge et al. 2024, arXiv:2404.16130. Differs from the paper: reports are
selected by their vectors instead of by a model that reads all of them, and the result is the source
passages of their statements, interleaved from report to report. A report is used only where all its
passages are visible to the user.
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
    from stillroom.rag.types import RankedRows

__all__ = ["GraphGlobal"]


class GraphGlobal(Retriever):
    """Source passages of community reports, interleaved."""

    paper: ClassVar[str] = "arXiv:2404.16130"

    graph: str = Field(description="folder of the graph built by a job of kind rag.graph")
    level: int = Field(
        0, ge=0, le=20, description="level of the communities; 0 has the largest ones"
    )
    reports: int = Field(20, ge=1, le=10_000, description="number of reports")

    @property
    @override
    def moment(self) -> str:
        return open_graph(self.graph).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        graph = open_graph(self.graph)
        visibility = graph.meet(index)
        similarities = graph.report_likeness(index.embed_query(query))
        best = rank_reports(graph, visibility, similarities, level=self.level, count=self.reports)
        lists = [visibility.rows(_list_source_rows(graph, community)) for community in best]
        rows = interleave_rows(lists)[:k]
        return [(row, 1.0 / rank) for rank, row in enumerate(rows, start=1)]


def _list_source_rows(graph: KnowledgeGraph, community: int) -> list[int]:
    """Return the source passages of a report, in order of its statements."""
    findings = graph.communities[community].report.findings
    return list(dict.fromkeys(row for finding in findings for row, _, _ in finding.spans))
