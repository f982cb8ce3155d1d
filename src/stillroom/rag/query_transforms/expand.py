"""Query expansion by terms of the first passages (RM3 pseudo-relevance feedback); no model.

Source: Abdul-Jaleel et al. 2004, "UMass at TREC 2004: Novelty and HARD" (RM3): the query model is
interpolated with the relevance model of Lavrenko and Croft 2001, sum over feedback passages of
P(term | passage) P(passage | query), cut to the strongest terms. P(passage | query) is the share of
its BM25 score.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, QueryTransform

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Expand"]


class Expand(QueryTransform):
    """Expands the terms of a query; its text, and so its vector, stay the same."""

    paper: ClassVar[str] = "Abdul-Jaleel et al. 2004, TREC"

    passages: int = Field(10, ge=1, le=100, description="number of feedback passages")
    terms: int = Field(10, ge=1, le=200, description="number of added terms")
    original: float = Field(0.5, ge=0, le=1, description="weight of the query's own terms")

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        query_terms = index.analyzer.query_terms(query.text)
        first = index.search_keyword(query, self.passages)
        total = sum(score for _, score in first)
        if not query_terms or total <= 0:
            return [query]
        relevance: defaultdict[str, float] = defaultdict(float)
        for row, score in first:
            passage = index.passage_at(row)
            counts = Counter(
                term
                for term in index.analyzer.terms(passage.text, passage.language)
                if term not in index.analyzer.stop_words
            )
            length = sum(counts.values())
            for term, count in counts.items():
                relevance[term] += count / length * score / total
        strongest = sorted(relevance, key=lambda term: (-relevance[term], term))[: self.terms]
        mass = sum(relevance[term] for term in strongest) or 1.0
        size = sum(query_terms.values())
        weights = {term: self.original * count / size for term, count in query_terms.items()}
        for term in strongest:
            share = (1 - self.original) * relevance[term] / mass
            weights[term] = weights.get(term, 0.0) + share
        positive = {term: weight for term, weight in weights.items() if weight > 0}
        return [Query(query.text, positive or query_terms, query.drafts)]
