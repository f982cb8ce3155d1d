"""Grade retrieved passages; search again, or abstain where none answers (CRAG).

Source: Yan et al. 2024, "Corrective Retrieval Augmented Generation", arXiv:2401.15884: one passage
graded above ``upper`` makes the search correct, all below ``lower`` incorrect, anything else
ambiguous; passages are read as strips. Differs from the paper: any grader takes the place of the
trained one; instead of the web, first both legs of the index are searched deeper, then the model
writes other queries; and a search that stays incorrect ends in a refusal that names what came
nearest. Stops when a search brings nothing new.
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
    """Grade, keep, search again, abstain."""

    paper: ClassVar[str] = "arXiv:2401.15884"

    grader: Annotated[RelevanceGrader, GRADERS.choice()] = Field(
        "overlap", validate_default=True, description="what grades passages"
    )
    queries: int = Field(
        3, ge=0, le=16, description="how many other queries the model writes; 0 asks for none"
    )
    strip: int = Field(0, ge=0, le=100, description="sentences in a strip; 0 shows passages whole")
    most_strips: int = Field(5, ge=1, le=100, description="how many strips are shown at most")

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        k, pool = inquiry.asking.k, CandidatePool(inquiry, self.grader)
        pool.add(inquiry.retrieve()[:k])
        for number in range(self.max_rounds):
            inquiry.note("decide", verdict=pool.verdict, best=round(pool.best, 3))
            if pool.verdict == "correct" or not inquiry.may("search again", self._cost(number, k)):
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

    def _cost(self, number: int, k: int) -> int:
        """Return how often the model may be asked in a round at most."""
        searches = 2 if number == 0 else self.queries
        return searches * k * _DEPTH_FACTOR + (number > 0)

    def _search_again(self, inquiry: AnswerSession, pool: CandidatePool, number: int) -> bool:
        """Search in another way; return whether anything new was found."""
        k = inquiry.asking.k
        if number == 0:
            found = [
                pool.add(inquiry.retrieve(k=k * _DEPTH_FACTOR, retriever=leg)[: k * _DEPTH_FACTOR])
                for leg in ("keyword", "dense")
            ]
            return any(found)
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
        """Return the strips that hold the answer, or the hits whole."""
        if not self.strip:
            return hits
        strips = split_strips(hits, self.strip)
        if not inquiry.may("cut strips", len(strips)):
            return hits
        texts = [hits[at].passage.text[start:end] for at, start, end in strips]
        grades = self.grader.grade(inquiry.query, texts, inquiry.index, inquiry.model)
        order = sorted(range(len(strips)), key=lambda at: (-grades[at], at))
        kept = [at for at in order if grades[at] >= self.grader.lower][: self.most_strips]
        inquiry.note("cut strips", strips=len(strips), kept=len(kept))
        if not kept:
            return hits
        return merge_strips(hits, [strips[at] for at in kept], inquiry.index)
