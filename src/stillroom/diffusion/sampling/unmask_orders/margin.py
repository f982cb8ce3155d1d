"""Largest-margin-first order: top-1 minus top-2 probability.

Source: Kim et al. 2025, arXiv:2502.06768 (top probability margin); Dream's topk_margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskOrder

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["Margin"]


class Margin(UnmaskOrder):
    """By the difference of the two highest probabilities."""

    paper: ClassVar[str] = "arXiv:2502.06768"

    @override
    def score(self, view: Candidates) -> Tensor:
        return view.margin
