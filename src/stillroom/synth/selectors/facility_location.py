"""Facility location: the subset that maximizes similarity to all records.

Source: Wei et al. 2015 (submodular subset selection), by Minoux's lazy greedy: exact greedy, with
at least 1 - 1/e of the best sum.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import CandidateSet, Selection, Selector
from stillroom.synth.selection import BEYOND_BUDGET, choose_facilities, make_selection, rank_records

__all__ = ["FacilityLocation"]


class FacilityLocation(Selector):
    """Chooses records so that every record has one like it among them."""

    paper: ClassVar[str] = "Wei et al. 2015"

    budget: int = Field(1000, ge=1, description="how many records are kept")
    embedder: Reference = Field(
        "hub:sentence-transformers/all-MiniLM-L6-v2", description="what tells likeness"
    )
    score: str = Field("", description="filter whose score decides between equal records")

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if len(pool.records) <= self.budget:
            return Selection(tuple(range(len(pool.records))), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        kept = [at for at, _ in choose_facilities(rows, self.budget, tie=ranks)]
        nearest = (rows @ rows[kept].T).max(1)
        scores = {at: float(near) for at, near in enumerate(nearest)}
        return make_selection(pool, kept, BEYOND_BUDGET, scores)
