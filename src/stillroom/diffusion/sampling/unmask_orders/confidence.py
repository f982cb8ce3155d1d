"""Highest-confidence-first order, for LLaDA's low-confidence remasking (``sampling.sampler``).

Source: Chang et al. 2022, arXiv:2202.04200 (MaskGIT); LLaDA's low-confidence remasking, Nie et al.
2025, arXiv:2502.09992, is this order. ``sampler.DiffusionSampler`` unmasks the first ones of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskOrder

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["Confidence"]


class Confidence(UnmaskOrder):
    """By the probability of the candidate token."""

    paper: ClassVar[str] = "arXiv:2202.04200"

    @override
    def score(self, view: Candidates) -> Tensor:
        return view.confidence
