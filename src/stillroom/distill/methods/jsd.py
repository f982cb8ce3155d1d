"""Generalized Jensen-Shannon divergence: interpolates forward KL (beta 0) and reverse KL (1).

Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, equation 1. As defined there it vanishes with
beta and with 1 - beta: at 0.01 it is about a hundredth of the forward KL. beta 0 and 1 are the
forward and the reverse KL, as GKDConfig of trl documents, so the scale is discontinuous at both
ends. ``normalize`` divides by beta (1 - beta) in between, which removes the discontinuity; at beta
0.5 that is a factor of 4. Unnormalized, the value is at most ln 2 per token at beta 0.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["Jsd"]


class Jsd(DistillationObjective):
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``."""

    paper: ClassVar[str] = "arXiv:2306.13649"

    beta: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="teacher's share of the mixture; 0 is forward KL, 1 is reverse KL",
    )
    normalize: bool = Field(
        default=False, description="divide by beta (1 - beta), which gives the scale of a KL"
    )

    @property
    @override
    def takes_samples(self) -> bool:
        return self.beta < 1

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import (
            forward_kl_terms,
            mixture_ratio,
            reverse_kl_terms,
        )

        beta, complement = self.beta, 1 - self.beta
        if not beta:
            return forward_kl_terms(pair)
        if not complement:
            return reverse_kl_terms(pair)
        over = mixture_ratio(pair.log_ratio, beta).log_()  # log m - log q
        slope = (over * pair.q).mul_(-complement * self._scale)  # (1 - beta) q (log q - log m)
        # log p - log m, clamped at its limit -log beta where q is negligible
        gap = over.neg_().add_(pair.log_ratio).clamp_max_(-math.log(beta))
        return gap.mul_(pair.p).mul_(beta * self._scale).add_(slope), slope

    @override
    def control_variate(self, pair: DistributionPair) -> tuple[float, float]:
        if not self.beta:
            return 0.0, 1.0
        limit = -(1 - self.beta) * math.log1p(-self.beta) * self._scale
        return limit, limit

    @property
    def _scale(self) -> float:
        inside = 0 < self.beta < 1
        return 1 / (self.beta * (1 - self.beta)) if self.normalize and inside else 1.0
