"""Corrective RAG (CRAG): grade retrieved passages; search again, or abstain if none answers.

Source: Yan et al. 2024, "Corrective Retrieval Augmented Generation", arXiv:2401.15884: one passage
graded above ``upper`` makes the search correct, all below ``lower`` incorrect, anything else
ambiguous; passages are read as strips. Differs from the paper: any grader replaces the trained one;
instead of a web search, first both legs of the index are searched deeper, then the model writes
other queries; and a search that remains incorrect ends in a refusal that names the nearest
passages. Stops when a search finds nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.generation.prompt import CandidatePool, merge_strips, split_strips
from stillroom.rag.interfaces import GRADERS, AnswerStrategy, Query, RelevanceGrader

if TYPE_CHECKING:
    from stillroom.rag.generation.session import AnswerSession
    from stillroom.records import Hit

__all__ = ["Corrective"]

_REQUEST = (
    "A search for the question below found nothing that answers it. Write at most {count} other "
    "search queries, a few keywords each, that the answer's own text would match.\n\n"
    "Question: {query}"
)
_DEPTH_FACTOR = 3


class Corrective(AnswerStrategy):
    """Grade, keep relevant passages, search again, abstain."""

    paper: ClassVar[str] = "arXiv:2401.15884"

    grader: Annotated[RelevanceGrader, GRADERS.choice()] = Field(
        "overlap", validate_default=True, description="grader of passages"
    )
    queries: int = Field(
        3,
        ge=0,
        le=16,
        description="maximum number of other queries written by the model; 0 disables",
    )
    strip: int = Field(0, ge=0, le=100, description="sentences per strip; 0 shows entire passages")
    most_strips: int = Field(5, ge=1, le=100, description="maximum number of strips shown")

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        k, pool = inquiry.asking.k, CandidatePool(inquiry, self.grader)
        before = inquiry.model.calls
        pool.add(inquiry.retrieve()[:k])
        calls = inquiry.model.calls - before  # of one search: its transform and reranker
        for number in range(self.max_rounds):
            inquiry.note("decide", verdict=pool.verdict, best=round(pool.best, 3))
            if pool.verdict == "correct" or not inquiry.within_budget(
                "search again", 2 * calls if number == 0 else self.queries * calls + 1
            ):
                break
            if not self._search_again(inquiry, pool, number):
                inquiry.note("stop", before="search again", why="nothing new")
                break
        if pool.verdict == "incorrect":
            inquiry.abstain(
                "no-relevant-passage" if pool.hits else "nothing-found", pool.nearest(k)
            )
            return
        yield from inquiry.read(self._refine(inquiry, pool.usable(k)))

    def _search_again(self, inquiry: AnswerSession, pool: CandidatePool, number: int) -> bool:
        """Search with another method; return whether anything new was found."""
        k = inquiry.asking.k
        if number == 0:
            new_hits = [
                pool.add(inquiry.retrieve(k=k * _DEPTH_FACTOR, retriever=leg)[: k * _DEPTH_FACTOR])
                for leg in ("keyword", "dense")
            ]
            return any(new_hits)
        if not self.queries:
            return False
        written = inquiry.ask(
            _REQUEST.format(count=self.queries, query=inquiry.query.text),
            most=self.queries,
            max_new_tokens=48 * self.queries,
            method="corrective",
        )
        return any([pool.add(inquiry.retrieve(Query(text))[:k]) for text in written])

    def _refine(self, inquiry: AnswerSession, hits: list[Hit]) -> list[Hit]:
        """Return the strips with the answer, or the entire hits."""
        if not self.strip:
            return hits
        strips = split_strips(hits, self.strip)
        texts = [hits[position].passage.text[start:end] for position, start, end in strips]
        grades = self.grader.grade(inquiry.query, texts, inquiry.index)
        order = sorted(range(len(strips)), key=lambda i: (-grades[i], i))
        relevant = [i for i in order if grades[i] >= self.grader.lower][: self.most_strips]
        inquiry.note("cut strips", strips=len(strips), kept=len(relevant))
        if not relevant:
            return hits
        return merge_strips(hits, [strips[i] for i in relevant], inquiry.index)
