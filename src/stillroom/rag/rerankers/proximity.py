"""Promote passages in which the query's words occur close together; needs no model.

Source: Tao and Zhai 2007, "An Exploration of Proximity Measures in Information Retrieval", SIGIR
(the minimum pair distance, log(alpha + exp(-d))). Differs from the paper: distances are weighted by
idf, and the first retriever's order is kept by fusing ranks rather than adding scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import PassageReranker, Query
from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks
from stillroom.records import Hit

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Proximity"]


class Proximity(PassageReranker):
    """Idf-weighted closeness of query terms, fused with the first order."""

    paper: ClassVar[str] = "doi:10.1145/1277741.1277794"

    weight: float = Field(0.5, ge=0, description="weight of closeness against the first order")
    reach: int = Field(8, ge=1, description="distance in words at which closeness has halved")

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        wanted = set(index.analyzer.content_terms(query.text))
        idf = {term: index.lexicon.idf(term) for term in wanted}
        scores = [self._score(index.analyzer.terms(hit.passage.text), idf) for hit in hits]
        order = sorted(range(len(hits)), key=lambda at: (-scores[at], at))
        close = [(at, scores[at]) for at in order if scores[at] > 0]
        first = [(at, hit.score) for at, hit in enumerate(hits)]
        fused = fuse_reciprocal_ranks([first, close], weights=[1.0, self.weight])
        return [
            Hit(hits[at].passage, score, rank) for rank, (at, score) in enumerate(fused, start=1)
        ]

    def _score(self, terms: Sequence[str], idf: dict[str, float]) -> float:
        """Return coverage (idf of the terms held) plus closeness of neighbours that differ."""
        places = [(at, term) for at, term in enumerate(terms) if term in idf]
        score = sum(idf[term] for term in sorted({term for _, term in places}))
        nearest: dict[tuple[str, str], int] = {}
        for (at, term), (after, other) in pairwise(places):
            if term != other:
                pair = (min(term, other), max(term, other))
                nearest[pair] = min(nearest.get(pair, after - at), after - at)
        decay = math.log(2) / self.reach
        return score + sum(
            min(idf[pair[0]], idf[pair[1]]) * math.exp(-decay * (nearest[pair] - 1))
            for pair in sorted(nearest)
        )
