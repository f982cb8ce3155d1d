"""Random order (random remasking), over which the training objective averages.

Source: Nie et al. 2025, arXiv:2502.09992, section 2.4 (random remasking).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskOrder

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["Random"]


class Random(UnmaskOrder):
    """Uniformly random, drawn in every step."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def score(self, view: Candidates) -> Tensor:
        import torch

        return torch.rand(len(view.places), generator=view.rng, dtype=torch.float64)
