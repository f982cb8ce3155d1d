"""Places from left to right, as an autoregressive model writes.

Source: Nie et al. 2025, arXiv:2502.09992, appendix (autoregressive sampling of a diffusion model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.steps import Order

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.view import View

__all__ = ["LeftToRight"]


class LeftToRight(Order):
    """By place."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def score(self, view: View) -> Tensor:
        return -view.places.double()
