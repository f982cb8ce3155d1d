"""The places first where the likeliest token is furthest ahead of the second.

Source: Kim et al. 2025, arXiv:2502.06768 (top probability margin); Dream's topk_margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.steps import Order

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.view import View

__all__ = ["Margin"]


class Margin(Order):
    """By the distance between the two likeliest tokens."""

    paper: ClassVar[str] = "arXiv:2502.06768"

    @override
    def score(self, view: View) -> Tensor:
        return view.margin
