"""Top: the records with the highest score of a filter, by share or number.

Source: Li et al. 2024, arXiv:2402.00530 (Superfiltering keeps the highest IFD below 1: apply the
filter ``ifd`` first). Ties go to the lowest id.
"""

from __future__ import annotations

from math import ceil
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.synth.interfaces import CandidateSet, Selection, Selector
from stillroom.synth.selection import BEYOND_BUDGET, make_selection, rank_records

__all__ = ["Top"]


class Top(Selector):
    """Select the records with the highest scores."""

    paper: ClassVar[str] = "arXiv:2402.00530"

    score: str = Field("ifd", description="filter whose score ranks the records")
    share: float = Field(0.1, gt=0, le=1, description="share of the records to keep")
    budget: int | None = Field(
        None, ge=1, description="number of records to keep, instead of the share"
    )

    @override
    def list_unused(self) -> dict[str, str]:
        names = ("share",) if self.budget is not None else ()
        return {**super().list_unused(), **dict.fromkeys(names, "budget replaces it")}

    @override
    def select(self, pool: CandidateSet) -> Selection:
        ranks = rank_records(pool, self.score)
        count = self.budget if self.budget is not None else ceil(self.share * len(ranks))
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        scores = {
            index: record_scores.get(self.score, 0.0)
            for index, record_scores in enumerate(pool.scores)
        }
        return make_selection(pool, order[:count], BEYOND_BUDGET, scores)
