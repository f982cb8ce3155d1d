"""Rerank for diversity: relevance against redundancy (maximal marginal relevance, MMR).

Source: Carbonell and Goldstein 1998, "The Use of MMR, Diversity-Based Reranking for Reordering
Documents and Producing Summaries", SIGIR: argmax of lambda * sim1(d, q) - (1 - lambda) * max over
selected s of sim2(d, s). Sim2 is the cosine of the index's vectors; sim1 is the cosine with the
query, or the first retriever's min-max scores. The score of a hit is the value it was selected
with, or that of the hit before it if that is lower (cosines below 0 can raise a value).
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
        0.7, ge=0, le=1, description="lambda: 1 is relevance only, 0 is diversity only"
    )
    relevance: Literal["retrieved", "vectors"] = Field(
        "retrieved", description="sim1: the first retriever's scores, or the cosine"
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
            relevance = vectors @ index.embed_query(query)
        else:
            relevance = np.asarray(normalize_scores([hit.score for hit in hits]))
        order = _select_positions(relevance.astype(np.float64), vectors @ vectors.T, self.balance)
        return [
            Hit(hits[position].passage, score, rank)
            for rank, (position, score) in enumerate(order, 1)
        ]


def _select_positions(
    relevance: NDArray[np.float64], similarity: NDArray[np.float32], balance: float
) -> list[tuple[int, float]]:
    """Return positions in the order of their selection, each with its marginal relevance.

    ``relevance`` is (N,), ``similarity`` (N, N); ``balance`` is lambda of the formula.
    """
    remaining = np.ones(len(relevance), dtype=bool)
    nearest = np.zeros(len(relevance))
    order: list[tuple[int, float]] = []
    for step in range(len(relevance)):
        value = balance * relevance - (1 - balance) * nearest
        position = int(np.argmax(np.where(remaining, value, -np.inf)))
        order.append((position, min(float(value[position]), order[-1][1] if order else np.inf)))
        remaining[position] = False
        nearest = similarity[position] if step == 0 else np.maximum(nearest, similarity[position])
    return order
