"""Left-to-right order, as in autoregressive decoding.

Source: Nie et al. 2025, arXiv:2502.09992, appendix (autoregressive sampling of a diffusion model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskOrder

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["LeftToRight"]


class LeftToRight(UnmaskOrder):
    """By position."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def score(self, view: Candidates) -> Tensor:
        return -view.places.double()
