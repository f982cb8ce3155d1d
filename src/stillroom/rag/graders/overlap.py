"""Grade relevance by the share of the question's rare words close together; needs no model.

Source: no paper; idf-weighted coverage, as in BM25, over windows of three sentences and the
headings above them, so that words scattered through a long passage count less. English question
words ("what", "how", "does") are ignored: in a small index they would be rare. Synonyms are not
recognized; a passage that shares the question's words but not its meaning gets a high grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, RelevanceGrader
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index

__all__ = ["Overlap"]


_QUESTION_WORDS = (
    "what which who whom whose when where why how do does did can could should would may might will"
    " is are was were be been has have had"
)


class Overlap(RelevanceGrader):
    """Coverage of the question's terms by the best window of a passage."""

    paper: ClassVar[str] = ""

    window: int = Field(3, ge=1, le=100, description="number of sentences in a window")
    upper: float = Field(
        0.6, ge=0, le=1, description="minimum grade of a passage that has the answer"
    )
    lower: float = Field(
        0.45, ge=0, le=1, description="grade below which a passage does not have the answer"
    )

    @override
    def grade(
        self,
        query: Query,
        texts: Sequence[str],
        index: Index,
    ) -> list[float]:
        idf = index.lexicon.idf
        question_terms = set(index.analyzer.terms(_QUESTION_WORDS))
        terms = set(index.analyzer.content_terms(query.text)) - question_terms
        weights = {term: idf(term) for term in sorted(terms)}
        total = sum(weights.values())
        if not total:
            return [0.0] * len(texts)
        return [self._cover(text, weights, index) / total for text in texts]

    def _cover(self, text: str, weights: dict[str, float], index: Index) -> float:
        spans = split_sentences(text) or [(0, len(text))]
        width = min(self.window, len(spans))
        best = 0.0
        for first in range(len(spans) - width + 1):
            part = text[spans[first][0] : spans[first + width - 1][1]]
            window_terms = set(index.analyzer.terms(part))
            best = max(
                best, sum(weight for term, weight in weights.items() if term in window_terms)
            )
        return best
