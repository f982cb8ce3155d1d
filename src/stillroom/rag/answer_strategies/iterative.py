"""Split the question, retrieve for each part, and follow up on what is missing.

Source: Trivedi et al. 2022, "Interleaving Retrieval with Chain-of-Thought Reasoning", IRCoT,
arXiv:2212.10509; Press et al. 2022, arXiv:2210.03350 (parts of a question); Joren et al. 2024,
"Sufficient Context", arXiv:2411.06037 (the check before answering). Differs from the papers: a part
counts as covered when any grader grades a passage as answering it, and the model only writes the
parts and the queries for what is missing. Stops when all parts are covered or a search finds
nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.generation.prompt import CandidatePool
from stillroom.rag.interfaces import GRADERS, AnswerStrategy, Query, RelevanceGrader
from stillroom.rag.model_calls import drop_duplicate_texts

if TYPE_CHECKING:
    from stillroom.rag.generation.session import AnswerSession
    from stillroom.records import Hit

__all__ = ["Iterative"]

_DECOMPOSITION_PROMPT = (
    "Split the question below into at most {count} simpler questions that can each be looked up by "
    "themselves. If it is simple already, repeat it.\n\nQuestion: {query}"
)
_FOLLOW_UP_PROMPT = (
    "To answer the question below, one has still to find out: {part}\n"
    "Write at most {count} search queries, a few keywords each, that find it.\n\n"
    "Question: {query}"
)


class Iterative(AnswerStrategy):
    """Split, search, check the coverage of parts, and search again."""

    paper: ClassVar[str] = "arXiv:2212.10509"

    grader: Annotated[RelevanceGrader, GRADERS.choice()] = Field(
        "overlap",
        validate_default=True,
        description="grader that decides whether a part is covered",
    )
    parts: int = Field(3, ge=1, le=8, description="maximum number of parts of a question")
    queries: int = Field(2, ge=1, le=8, description="number of queries written for a missing part")

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        k = inquiry.asking.k
        question_pool = CandidatePool(inquiry, self.grader)
        question_pool.add(inquiry.retrieve()[:k])
        pools = {inquiry.query.text: question_pool}
        for part in self._split(inquiry):
            pools[part] = CandidatePool(inquiry, self.grader)
            pools[part].add(inquiry.retrieve(Query(part))[:k], Query(part))
        for _ in range(self.max_rounds):
            missing = [part for part, pool in pools.items() if pool.verdict != "correct"]
            inquiry.note("check", parts=len(pools), missing=len(missing))
            if not missing or not inquiry.within_budget("search again", 1 + self.queries * k):
                break
            if not self._search_again(inquiry, missing[-1], pools):
                inquiry.note("stop", before="search again", why="nothing new")
                break
        if all(pool.verdict == "incorrect" for pool in pools.values()):
            has_hits = any(pool.hits for pool in pools.values())
            why = "no-relevant-passage" if has_hits else "nothing-found"
            inquiry.abstain(why, question_pool.nearest(k))
            return
        yield from inquiry.read(_interleave(list(pools.values()), k))

    def _split(self, inquiry: AnswerSession) -> list[str]:
        """Return the parts of the question, without the question itself."""
        if not inquiry.within_budget("split", 1 + self.parts * inquiry.asking.k):
            return []
        written = inquiry.ask(
            _DECOMPOSITION_PROMPT.format(count=self.parts, query=inquiry.query.text),
            most=self.parts,
            max_new_tokens=64 * self.parts,
            method="iterative",
        )
        parts = drop_duplicate_texts([inquiry.query.text, *written])[1:]
        inquiry.note("split", parts=parts)
        return parts

    def _search_again(
        self, inquiry: AnswerSession, part: str, pools: dict[str, CandidatePool]
    ) -> bool:
        """Search for a missing part; return whether anything new was found."""
        written = inquiry.ask(
            _FOLLOW_UP_PROMPT.format(part=part, count=self.queries, query=inquiry.query.text),
            most=self.queries,
            max_new_tokens=48 * self.queries,
            method="iterative",
        )
        k = inquiry.asking.k
        known = {hit.passage.id for pool in pools.values() for hit in pool.hits}
        hits = [
            hit
            for text in written
            for hit in pools[part].add(inquiry.retrieve(Query(text))[:k], Query(part))
        ]
        return any(hit.passage.id not in known for hit in hits)


def _interleave(pools: list[CandidatePool], k: int) -> list[Hit]:
    """Return ``k`` distinct hits: the best of each part first, then the second of each."""
    from stillroom.records import Hit

    lists = [pool.usable(k) for pool in pools]
    selected: dict[str, Hit] = {}
    for i in range(k):
        for hits in lists:
            if i < len(hits) and len(selected) < k:
                selected.setdefault(hits[i].passage.id, hits[i])
    return [Hit(hit.passage, hit.score, rank) for rank, hit in enumerate(selected.values(), 1)]
