"""Facility location: the subset that maximizes similarity to all records.

Source: Wei et al. 2015 (submodular subset selection), by Minoux's lazy greedy: exact greedy, with
at least 1 - 1/e of the best sum.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import EMBEDDER, CandidateSet, Selection, Selector
from stillroom.synth.selection import BEYOND_BUDGET, choose_facilities, make_selection, rank_records

__all__ = ["FacilityLocation"]


class FacilityLocation(Selector):
    """Select records such that every record has a similar one among them."""

    paper: ClassVar[str] = "Wei et al. 2015"

    budget: int = Field(1000, ge=1, description="number of records to keep")
    embedder: Reference = EMBEDDER
    score: str = Field("", description="filter whose score breaks ties")

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if len(pool.records) <= self.budget:
            return Selection(tuple(range(len(pool.records))), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        selected = [index for index, _ in choose_facilities(rows, self.budget, tie=ranks)]
        nearest = (rows @ rows[selected].T).max(1)
        scores = {index: float(similarity) for index, similarity in enumerate(nearest)}
        return make_selection(pool, selected, BEYOND_BUDGET, scores)
