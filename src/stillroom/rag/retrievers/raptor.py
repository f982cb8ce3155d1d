"""Retrieve from passages and tree summaries together; a summary leads to its passages (RAPTOR).

Source: Sarthi et al. 2024, arXiv:2401.18059, the collapsed tree: nodes of all layers compared with
the query at once. Differs: a summary that is found gives in its place the passages beneath it that
are nearest to the query, since only documents can be cited; and clusters come from the graph of
nearest neighbours instead of Gaussian mixtures (see ``stillroom rag tree``). A summary is used only
where every passage beneath it may be seen.
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
    from stillroom.records import Hit

__all__ = ["Raptor"]


class Raptor(Retriever):
    """The collapsed tree, unfolded to passages."""

    paper: ClassVar[str] = "arXiv:2401.18059"

    tree: str = Field(description="folder of the tree that 'stillroom rag tree' made")
    leaves: int = Field(3, ge=1, le=100, description="how many passages a found summary gives")

    @property
    @override
    def moment(self) -> str:
        return open_tree(self.tree).digest

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        tree = open_tree(self.tree)
        sight = check_index_match(tree, index)
        vector = index.embed_query(query)
        found = [(score, 0, row) for row, score in index.search_dense(query, k)]
        found += [
            (float(score), 1, at) for at, score in enumerate(tree.likeness(vector)) if score > 0
        ]
        found.sort(key=lambda one: (-one[0], one[1], one[2]))
        rows: dict[int, float] = {}
        for score, is_summary, at in found:
            if len(rows) >= k:
                break
            for row in self._unfold(tree, at, sight, vector, index) if is_summary else [at]:
                rows.setdefault(row, score)
        return index.hits(list(rows.items())[:k])

    def _unfold(
        self,
        tree: SummaryTree,
        at: int,
        sight: GraphVisibility,
        vector: NDArray[np.float32],
        index: Index,
    ) -> list[int]:
        """Return the passages beneath a summary that are nearest; none where one cannot be seen."""
        node = tree.nodes[at]
        if not sight.sees_all(node.rows):
            return []
        rows = sight.rows(node.rows)
        scores = np.round(index.vectors_of(rows) @ vector, 6)
        order = sorted(range(len(rows)), key=lambda place: (-scores[place], rows[place]))
        return [rows[place] for place in order[: self.leaves]]
