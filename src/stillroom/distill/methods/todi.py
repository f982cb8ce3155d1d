"""ToDi: each token of the vocabulary has its own mix of forward and reverse KL.

Source: Jung et al. 2025, arXiv:2505.16297, section 3: a token's forward part weighs p / (p + q),
its reverse part the rest, fixed in the gradient. Underestimated tokens are so raised as forward KL
raises them, overestimated ones lowered as reverse KL does. The value comes to
``sum (p - q) (log p - log q)``; its gradient is another. Sampled targets are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.divergence import Pair

__all__ = ["Todi"]


class Todi(Objective):
    """``sum w p (log p - log q) + (1 - w) q (log q - log p)`` with ``w = p / (p + q)``."""

    paper: ClassVar[str] = "arXiv:2505.16297"
    detaches_weights: ClassVar[bool] = True

    @override
    def terms(self, pair: Pair) -> tuple[Tensor, Tensor]:
        weight = pair.log_ratio.sigmoid()
        slope = (1 - weight).mul_(pair.q).mul_(1 - pair.log_ratio)
        slope.sub_(weight.mul_(pair.p))
        return (pair.p - pair.q).mul_(pair.log_ratio), slope
