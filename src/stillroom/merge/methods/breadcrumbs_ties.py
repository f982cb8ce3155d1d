"""Breadcrumbs with TIES: drop the largest and smallest changes, then elect signs.

Source: Davari and Belilovsky 2023, arXiv:2312.06795: outliers and small elements of each tensor of
a task vector are dropped. Sign election is that of Yadav et al. 2023, arXiv:2306.01708. Differs:
``density`` is the share kept and ``gamma`` the share of outliers dropped above it; of equal
magnitudes the first element counts as the larger.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillroom.merge.families import BreadcrumbsMethod

__all__ = ["BreadcrumbsTies"]


class BreadcrumbsTies(BreadcrumbsMethod):
    """Sign election of TIES on the middle magnitudes of every task vector, by tensor."""

    paper: ClassVar[str] = "arXiv:2312.06795"
    votes: ClassVar[bool] = True

    normalize: bool = Field(True, description="average the agreeing elements; off: sum them")
