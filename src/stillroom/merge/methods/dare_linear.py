"""DARE: drop elements of task vectors at random, rescale the rest, add them up.

Source: Yu et al. 2023, arXiv:2311.03099, Algorithm 1 (drop with probability 1 - density, multiply
by 1 / density). The paper's vectors are small; at large ones the rescaling does harm.
"""

from __future__ import annotations

from typing import ClassVar

from stillroom.merge.families import DareMethod

__all__ = ["DareLinear"]


class DareLinear(DareMethod):
    """Task arithmetic on thinned task vectors; the expectation is that of the full ones."""

    paper: ClassVar[str] = "arXiv:2311.03099"
