"""Trade relevance against redundancy (maximal marginal relevance, MMR).

Source: Carbonell and Goldstein 1998, "The Use of MMR, Diversity-Based Reranking for Reordering
Documents and Producing Summaries", SIGIR: argmax of lambda * sim1(d, q) - (1 - lambda) * max over
chosen s of sim2(d, s). Sim2 is the cosine of the index's own vectors; sim1 is the cosine with the
query, or the first order's scores put between 0 and 1. The score of a hit is the value it was
chosen with, or that of the hit before it where that is lower (cosines below 0 can raise a value).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import PassageReranker, Query
from stillroom.rag.retrieval.ranking import normalize_scores
from stillroom.records import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Mmr"]


class Mmr(PassageReranker):
    """Maximal marginal relevance."""

    paper: ClassVar[str] = "doi:10.1145/290941.291025"

    balance: float = Field(
        0.7, ge=0, le=1, description="lambda: 1 is relevance alone, 0 is difference alone"
    )
    relevance: Literal["retrieved", "vectors"] = Field(
        "retrieved", description="what relevance is: the first order's scores, or the cosine"
    )

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        if not hits:
            return []
        vectors = index.vectors_of([index.row_of(hit.passage.id) for hit in hits])
        if self.relevance == "vectors":
            wanted = vectors @ index.embed_query(query)
        else:
            wanted = np.asarray(normalize_scores([hit.score for hit in hits], "minmax"))
        order = _select_positions(wanted.astype(np.float64), vectors @ vectors.T, self.balance)
        return [Hit(hits[at].passage, score, rank) for rank, (at, score) in enumerate(order, 1)]


def _select_positions(
    wanted: NDArray[np.float64], likeness: NDArray[np.float32], balance: float
) -> list[tuple[int, float]]:
    """Return positions in the order they are chosen, each with its marginal relevance.

    Args:
        wanted: Relevance of each, (N,).
        likeness: Of each to each, (N, N).
        balance: Lambda.
    """
    left = np.ones(len(wanted), dtype=bool)
    nearest = np.zeros(len(wanted))
    order: list[tuple[int, float]] = []
    for step in range(len(wanted)):
        value = balance * wanted - (1 - balance) * nearest
        at = int(np.argmax(np.where(left, value, -np.inf)))
        order.append((at, min(float(value[at]), order[-1][1] if order else np.inf)))
        left[at] = False
        nearest = likeness[at] if step == 0 else np.maximum(nearest, likeness[at])
    return order
