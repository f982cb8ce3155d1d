"""Skew KL (alpha): KL against the mixture that ``losses.divergence`` makes; bounded gradients.

Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, equations 3 and 4. ``forward`` is
KL(p || alpha p + (1 - alpha) q), ``reverse`` is KL(q || (1 - alpha) p + alpha q). Differs from the
released code: the value is the divergence, not a cross-entropy; mixtures are in log space.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["SkewKl"]


class SkewKl(DistillationObjective):
    """KL of one side against a mixture with weight ``alpha`` on the same side."""

    paper: ClassVar[str] = "arXiv:2402.03898"

    alpha: float = Field(default=0.1, gt=0, lt=1, description="mixture weight of the same side")
    direction: Literal["forward", "reverse"] = Field(
        default="forward",
        description="distribution of the expectation: forward the teacher, reverse the student",
    )

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import skew_forward_kl_terms, skew_reverse_kl_terms

        terms = skew_forward_kl_terms if self.direction == "forward" else skew_reverse_kl_terms
        return terms(pair, self.alpha)

    @override
    def control_variate(self, pair: DistributionPair) -> tuple[float, float]:
        if self.direction == "forward":
            return 0.0, 1 - self.alpha
        limit = -math.log(self.alpha)
        return limit, limit + self.alpha - 1
