"""DARE with TIES: drop elements at random, rescale, elect a sign, average what agrees.

Source: Yu et al. 2023, arXiv:2311.03099, with the vote of Yadav et al. 2023, arXiv:2306.01708.
Differs from both papers' code: nothing is trimmed by magnitude after the random drop.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillroom.merge.families import DareMethod

__all__ = ["DareTies"]


class DareTies(DareMethod):
    """The random drop of DARE before the vote of TIES."""

    paper: ClassVar[str] = "arXiv:2311.03099"
    votes: ClassVar[bool] = True

    normalize: bool = Field(True, description="average what agrees; off sums it")
