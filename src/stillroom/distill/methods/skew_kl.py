"""Skew KL: a KL against a mixture of both sides, with a bounded gradient.

Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, equations 3 and 4. ``forward`` is
KL(p || alpha p + (1 - alpha) q), ``reverse`` is KL(q || (1 - alpha) p + alpha q). Differs from the
released code: the value is the divergence, not a cross-entropy, and mixtures are made in log space.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SkewKl"]


class SkewKl(Objective):
    """KL of one side against a mixture that holds ``alpha`` of that same side."""

    paper: ClassVar[str] = "arXiv:2402.03898"

    alpha: float = Field(
        default=0.1, gt=0, lt=1, description="share of its own side in the mixture"
    )
    direction: Literal["forward", "reverse"] = Field(
        default="forward",
        description="whose expectation it is: forward the teacher's, reverse the student's",
    )

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        return (
            self._forward(log_q, log_p)
            if self.direction == "forward"
            else self._reverse(log_q, log_p)
        )

    def _forward(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        other = math.log1p(-self.alpha)
        log_m = torch.logaddexp(log_p + math.log(self.alpha), log_q + other)
        loss = torch.linalg.vecdot(log_p.exp(), log_p - log_m)
        # dL/dz = q sum(r) - r with r = (1 - alpha) p q / m
        r = log_p.add_(log_q).sub_(log_m).add_(other).exp_()
        return loss, log_q.exp_().mul_(r.sum(-1, keepdim=True)).sub_(r)

    def _reverse(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        from stillroom.distill.divergence import through_softmax

        own = math.log(self.alpha)
        log_m = torch.logaddexp(log_p.add_(math.log1p(-self.alpha)), log_q + own)
        gap = log_q - log_m
        # dL/dq = log q - log m + 1 - alpha q / m; the constant 1 falls out in the softmax
        by_q = gap - (log_q - log_m).add_(own).exp_()
        q = log_q.exp_()
        return torch.linalg.vecdot(q, gap), through_softmax(q, by_q)
