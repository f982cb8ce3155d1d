"""DARE: drop elements of task vectors at random, rescale the rest, and sum.

Source: Yu et al. 2023, arXiv:2311.03099, Algorithm 1 (drop with probability 1 - density, multiply
by 1 / density). The paper's vectors are small; for large ones, rescaling is harmful.
``merge.tensors.task_vectors.random_sparsify`` drops and rescales.
"""

from __future__ import annotations

from typing import ClassVar

from stillroom.merge.families import DareMethod

__all__ = ["DareLinear"]


class DareLinear(DareMethod):
    """Task arithmetic on randomly sparsified task vectors, unbiased in expectation."""

    paper: ClassVar[str] = "arXiv:2311.03099"
