"""K-center: greedy farthest-point subset that minimizes the largest distance to a record.

Source: Sener and Savarese 2018, arXiv:1708.00489 (core-sets), by Gonzalez's farthest first: the
radius is at most twice the optimum. It favors outliers: filter out noise first.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.synth.interfaces import EMBEDDER, CandidateSet, Selection, Selector
from stillroom.synth.selection import BEYOND_BUDGET, choose_farthest, make_selection, rank_records

__all__ = ["KCenter"]


class KCenter(Selector):
    """Select records that cover the pool with the smallest radius."""

    paper: ClassVar[str] = "arXiv:1708.00489"

    budget: int = Field(1000, ge=1, description="number of records to keep")
    embedder: Reference = EMBEDDER
    score: str = Field("", description="filter whose score determines the first record")

    @override
    def select(self, pool: CandidateSet) -> Selection:
        if len(pool.records) <= self.budget:
            return Selection(tuple(range(len(pool.records))), {})
        rows = pool.vectors(self.embedder)
        ranks = rank_records(pool, self.score)
        first = int(np.argmin(ranks))
        selected = [index for index, _ in choose_farthest(rows, self.budget, first, tie=ranks)]
        nearest = (rows @ rows[selected].T).max(1)
        scores = {index: float(similarity) for index, similarity in enumerate(nearest)}
        return make_selection(pool, selected, BEYOND_BUDGET, scores)
