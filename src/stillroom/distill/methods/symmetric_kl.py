"""Symmetric KL: weighted sum of forward and reverse KL, equal by default.

Source: Jeffreys 1946, doi:10.1098/rspa.1946.0056, whose divergence is the sum of both; here a
weighted mean, so that 1 is the forward KL and 0 the reverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["SymmetricKl"]


class SymmetricKl(DistillationObjective):
    """``forward_share KL(p || q) + (1 - forward_share) KL(q || p)``."""

    paper: ClassVar[str] = "doi:10.1098/rspa.1946.0056"

    forward_share: float = Field(
        default=0.5, ge=0, le=1, description="weight of the forward KL; the reverse has 1 minus it"
    )

    @property
    @override
    def takes_samples(self) -> bool:
        return self.forward_share == 1

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import forward_kl_terms, reverse_kl_terms

        share = self.forward_share
        term, slope = forward_kl_terms(pair)
        if share == 1:
            return term, slope
        back, back_slope = reverse_kl_terms(pair)
        slope = slope.mul_(share).add_(back_slope, alpha=1 - share)
        return term.mul_(share).add_(back, alpha=1 - share), slope

    @override
    def control_variate(self, pair: DistributionPair) -> tuple[float, float]:
        return 0.0, 1.0
