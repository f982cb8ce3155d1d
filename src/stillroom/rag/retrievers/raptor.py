"""Retrieve from passages and tree summaries together; a summary is replaced by its passages.

Source: Sarthi et al. 2024, RAPTOR, arXiv:2401.18059, the collapsed tree: nodes of all layers are
compared with the query at once. Differs from the paper: a summary is replaced by its passages that
are nearest to the query, since only documents can be cited; and clusters come from a
nearest-neighbor graph instead of Gaussian mixtures (kind ``rag.summary_tree``). A summary is used
only where all its passages are visible to the user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.rag.graph.knowledge_graph import check_index_match
from stillroom.rag.graph.summary_tree import open_tree
from stillroom.rag.interfaces import Query, Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.graph.knowledge_graph import GraphVisibility
    from stillroom.rag.graph.summary_tree import SummaryTree
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.types import RankedRows

__all__ = ["Raptor"]


class Raptor(Retriever):
    """Collapsed tree search, expanded to passages."""

    paper: ClassVar[str] = "arXiv:2401.18059"

    tree: str = Field(description="folder of the tree built by a job of kind rag.summary_tree")
    leaves: int = Field(3, ge=1, le=100, description="number of passages per summary")

    @property
    @override
    def moment(self) -> str:
        return open_tree(self.tree).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        tree = open_tree(self.tree)
        visibility = check_index_match(tree, index)
        vector = index.embed_query(query)
        scored = [(score, 0, row) for row, score in index.search_dense(query, k)]
        scored += [
            (float(score), 1, number)
            for number, score in enumerate(tree.likeness(vector))
            if score > 0
        ]
        scored.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
        rows: dict[int, float] = {}
        for score, is_summary, number in scored:
            if len(rows) >= k:
                break
            for row in (
                self._unfold(tree, number, visibility, vector, index) if is_summary else [number]
            ):
                rows.setdefault(row, score)
        return list(rows.items())[:k]

    def _unfold(
        self,
        tree: SummaryTree,
        number: int,
        visibility: GraphVisibility,
        vector: NDArray[np.float32],
        index: Index,
    ) -> list[int]:
        """Return the nearest passages of a summary; empty if one of its passages is not visible."""
        node = tree.nodes[number]
        if not visibility.sees_all(node.rows):
            return []
        rows = visibility.rows(node.rows)
        scores = np.round(index.vectors_of(rows) @ vector, 6)
        order = sorted(range(len(rows)), key=lambda position: (-scores[position], rows[position]))
        return [rows[position] for position in order[: self.leaves]]
