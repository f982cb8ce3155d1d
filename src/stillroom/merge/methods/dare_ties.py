"""DARE with TIES: drop elements at random, rescale, elect a sign, average the agreeing elements.

Source: Yu et al. 2023, arXiv:2311.03099, with sign election of Yadav et al. 2023, arXiv:2306.01708.
Differs from both papers' code: nothing is trimmed by magnitude after the random drop.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillroom.merge.families import DareMethod

__all__ = ["DareTies"]


class DareTies(DareMethod):
    """Random drop of DARE before sign election of TIES."""

    paper: ClassVar[str] = "arXiv:2311.03099"
    votes: ClassVar[bool] = True

    normalize: bool = Field(True, description="average the agreeing elements; off: sum them")
