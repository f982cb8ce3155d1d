"""Breadcrumbs with TIES: leave out the largest and smallest changes, then vote.

Source: Davari and Belilovsky 2023, arXiv:2312.06795: each tensor of a task vector loses its
outliers and its small elements. The vote is that of Yadav et al. 2023, arXiv:2306.01708. Differs:
``density`` is the share kept and ``gamma`` the share of outliers dropped above it; of equal
magnitudes the first element counts as the larger.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillroom.merge.families import BreadcrumbsMethod

__all__ = ["BreadcrumbsTies"]


class BreadcrumbsTies(BreadcrumbsMethod):
    """The vote of TIES on the middle of every task vector, tensor by tensor."""

    paper: ClassVar[str] = "arXiv:2312.06795"
    votes: ClassVar[bool] = True

    normalize: bool = Field(True, description="average what agrees; off sums it")
