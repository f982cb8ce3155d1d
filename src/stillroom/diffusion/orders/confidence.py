"""The places first whose tokens the model is surest of.

Source: Chang et al. 2022, arXiv:2202.04200 (MaskGIT); LLaDA's low-confidence remasking, Nie et al.
2025, arXiv:2502.09992, is this order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.steps import Order

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.view import View

__all__ = ["Confidence"]


class Confidence(Order):
    """By the probability of the token that would be written."""

    paper: ClassVar[str] = "arXiv:2202.04200"

    @override
    def score(self, view: View) -> Tensor:
        return view.confidence
