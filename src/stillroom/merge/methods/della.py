"""DELLA: drop elements at random, small ones more often, elect a sign, average what agrees.

Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune, elect, fuse). Differs: ``density`` and
``epsilon`` speak of what is kept, with probabilities from density - epsilon for the smallest of a
row to density + epsilon for the largest; a vote that ends in a draw elects +; models may have
weights.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillroom.merge.families import DellaMethod

__all__ = ["Della"]


class Della(DellaMethod):
    """The vote of TIES on task vectors that were thinned by rank."""

    paper: ClassVar[str] = "arXiv:2406.11617"
    votes: ClassVar[bool] = True

    normalize: bool = Field(True, description="average what agrees; off sums it")
