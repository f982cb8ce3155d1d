"""The places first whose distributions are narrowest.

Source: Ye et al. 2025, arXiv:2508.15487 (Dream's entropy order).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.steps import Order

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.view import View

__all__ = ["Entropy"]


class Entropy(Order):
    """By entropy, the lowest first."""

    paper: ClassVar[str] = "arXiv:2508.15487"

    @override
    def score(self, view: View) -> Tensor:
        return -view.entropy
