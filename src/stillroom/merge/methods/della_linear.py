"""DELLA without the vote: drop elements at random, small ones more often, add up the rest.

Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune only). Differs: ``density`` and ``epsilon``
speak of what is kept, with probabilities from density - epsilon for the smallest of a row to
density + epsilon for the largest.
"""

from __future__ import annotations

from typing import ClassVar

from stillroom.merge.families import DellaMethod

__all__ = ["DellaLinear"]


class DellaLinear(DellaMethod):
    """Task arithmetic on task vectors thinned by rank; the expectation is that of the full ones."""

    paper: ClassVar[str] = "arXiv:2406.11617"
