"""ToDi: token-wise mixture of forward and reverse KL.

Source: Jung et al. 2025, arXiv:2505.16297, section 3: a token's forward term has weight p /
(p + q), its reverse term 1 minus that, constant in the gradient. Underestimated tokens are raised
as by forward KL, overestimated ones lowered as by reverse KL. The value equals
``sum (p - q) (log p - log q)``, but not its gradient. Sampled targets are rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["Todi"]


class Todi(DistillationObjective):
    """``sum w p (log p - log q) + (1 - w) q (log q - log p)`` with ``w = p / (p + q)``."""

    paper: ClassVar[str] = "arXiv:2505.16297"
    detaches_weights: ClassVar[bool] = True

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        weight = pair.log_ratio.sigmoid()
        slope = (1 - weight).mul_(pair.q).mul_(1 - pair.log_ratio)
        slope.sub_(weight.mul_(pair.p))
        return (pair.p - pair.q).mul_(pair.log_ratio), slope
