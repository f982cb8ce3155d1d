"""DELLA without sign election: drop elements at random by magnitude, and sum the rest.

Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune only). Differs: ``density`` and ``epsilon`` are
keep probabilities, from density - epsilon for the smallest of a row to density + epsilon for the
largest.
"""

from __future__ import annotations

from typing import ClassVar

from stillroom.merge.families import DellaMethod

__all__ = ["DellaLinear"]


class DellaLinear(DellaMethod):
    """Task arithmetic on task vectors pruned by rank, unbiased in expectation."""

    paper: ClassVar[str] = "arXiv:2406.11617"
