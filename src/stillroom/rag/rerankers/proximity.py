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
    """Idf-weighted proximity of query terms, fused with the first order."""

    paper: ClassVar[str] = "doi:10.1145/1277741.1277794"

    weight: float = Field(0.5, ge=0, description="weight of proximity against the first order")
    reach: int = Field(8, ge=1, description="distance in words at which proximity is halved")

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        query_terms = set(index.analyzer.content_terms(query.text))
        idf = {term: index.lexicon.idf(term) for term in query_terms}
        scores = [self._score(index.analyzer.terms(hit.passage.text), idf) for hit in hits]
        order = sorted(range(len(hits)), key=lambda position: (-scores[position], position))
        close = [(position, scores[position]) for position in order if scores[position] > 0]
        first = [(position, hit.score) for position, hit in enumerate(hits)]
        fused = fuse_reciprocal_ranks([first, close], weights=[1.0, self.weight])
        return [
            Hit(hits[position].passage, score, rank)
            for rank, (position, score) in enumerate(fused, start=1)
        ]

    def _score(self, terms: Sequence[str], idf: dict[str, float]) -> float:
        """Return coverage (idf of the contained terms) plus proximity of neighboring terms."""
        occurrences = [(position, term) for position, term in enumerate(terms) if term in idf]
        score = sum(idf[term] for term in sorted({term for _, term in occurrences}))
        nearest: dict[tuple[str, str], int] = {}
        for (position, term), (next_position, next_term) in pairwise(occurrences):
            if term != next_term:
                pair = (min(term, next_term), max(term, next_term))
                nearest[pair] = min(
                    nearest.get(pair, next_position - position), next_position - position
                )
        decay = math.log(2) / self.reach
        return score + sum(
            min(idf[pair[0]], idf[pair[1]]) * math.exp(-decay * (nearest[pair] - 1))
            for pair in sorted(nearest)
        )
