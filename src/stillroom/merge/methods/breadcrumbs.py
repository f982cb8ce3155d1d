"""Model Breadcrumbs: drop the largest (outliers) and the smallest changes, and sum the rest.

Source: Davari and Belilovsky 2023, arXiv:2312.06795: outliers and small elements of each tensor of
a task vector are dropped. Differs: ``density`` is the share kept and ``gamma`` the share of
outliers dropped above it; of equal magnitudes the first element counts as the larger.
"""

from __future__ import annotations

from typing import ClassVar

from stillroom.merge.families import BreadcrumbsMethod

__all__ = ["Breadcrumbs"]


class Breadcrumbs(BreadcrumbsMethod):
    """Task arithmetic on the middle magnitudes of every task vector, by tensor."""

    paper: ClassVar[str] = "arXiv:2312.06795"
