"""Lowest-entropy-first order.

Source: Ye et al. 2025, arXiv:2508.15487 (Dream's entropy order).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskOrder

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["Entropy"]


class Entropy(UnmaskOrder):
    """By entropy, lowest first."""

    paper: ClassVar[str] = "arXiv:2508.15487"

    @override
    def score(self, view: Candidates) -> Tensor:
        return -view.entropy
