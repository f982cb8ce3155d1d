"""Pool: the passages that several searches for one question found, each once, with their grades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stillroom.rag.prompting import drop_repeats
from stillroom.records import Hit

if TYPE_CHECKING:
    from stillroom.rag.inquiry import Inquiry
    from stillroom.rag.method import Grader, Query

__all__ = ["Pool"]


class Pool:
    """Hits in order of finding; every one is graded once, against what it was searched for."""

    def __init__(self, inquiry: Inquiry, grader: Grader) -> None:
        """Begin empty."""
        self._inquiry, self._grader = inquiry, grader
        self.hits: list[Hit] = []
        self.grades: dict[str, float] = {}

    def add(self, hits: Sequence[Hit], query: Query | None = None) -> list[Hit]:
        """Take in hits and grade those that are new; return these.

        Args:
            hits: Of one search.
            query: What they are graded against; by default the question.
        """
        known = {hit.passage.id for hit in self.hits}
        distinct = drop_repeats([*self.hits, *hits])[len(self.hits) :]
        fresh = [hit for hit in distinct if hit.passage.id not in known]
        if fresh:
            grades = self._inquiry.grade(self._grader, fresh, query)
            for hit, grade in zip(fresh, grades, strict=True):
                self.grades[hit.passage.id] = grade
            self.hits += fresh
        return fresh

    @property
    def best(self) -> float:
        """The highest grade; 0 where nothing was found."""
        return max(self.grades.values(), default=0.0)

    @property
    def verdict(self) -> str:
        """``correct``, ``ambiguous`` or ``incorrect``, by the grader's own thresholds."""
        if self.best >= self._grader.upper:
            return "correct"
        return "ambiguous" if self.best >= self._grader.lower else "incorrect"

    def usable(self, k: int) -> list[Hit]:
        """Return at most ``k`` hits that are not graded as missing the answer.

        Those graded as holding it come first; within each kind the order of finding stays, since
        a grader says whether, and a search says which first.
        """
        upper, lower = self._grader.upper, self._grader.lower
        sure = [hit for hit in self.hits if self.grades[hit.passage.id] >= upper]
        open_ones = [hit for hit in self.hits if lower <= self.grades[hit.passage.id] < upper]
        return _number([*sure, *open_ones][:k])

    def nearest(self, k: int) -> list[Hit]:
        """Return the ``k`` hits with the highest grades, whatever they are."""
        order = sorted(self.hits, key=lambda hit: -self.grades[hit.passage.id])
        return _number(order[:k])


def _number(hits: Sequence[Hit]) -> list[Hit]:
    return [Hit(hit.passage, hit.score, rank) for rank, hit in enumerate(hits, 1)]
