"""DELLA: drop elements at random by magnitude, elect a sign, average the agreeing elements.

Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune, elect, fuse). Differs: ``density`` and
``epsilon`` are keep probabilities, from density - epsilon for the smallest of a row to density +
epsilon for the largest; a tied vote elects +; models may have weights.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillroom.merge.families import DellaMethod

__all__ = ["Della"]


class Della(DellaMethod):
    """Sign election of TIES on task vectors pruned by rank."""

    paper: ClassVar[str] = "arXiv:2406.11617"
    votes: ClassVar[bool] = True

    normalize: bool = Field(True, description="average the agreeing elements; off: sum them")
