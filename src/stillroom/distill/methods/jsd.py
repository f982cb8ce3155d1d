"""Generalized Jensen-Shannon divergence: between forward (beta near 0) and reverse KL (near 1).

Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, equation 1. As defined there it vanishes with
beta: at 0.01 it is about a hundredth of the forward KL. ``normalize`` divides by beta (1 - beta),
so that both ends join the two KLs without a jump; at beta 0.5 that is a factor of 4.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Jsd"]


class Jsd(Objective):
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``."""

    paper: ClassVar[str] = "arXiv:2306.13649"

    beta: float = Field(default=0.5, gt=0, lt=1, description="teacher's share of the mixture")
    normalize: bool = Field(
        default=False, description="divide by beta (1 - beta), which makes the scale that of a KL"
    )

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        beta = self.beta
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        of_teacher = torch.linalg.vecdot(log_p.exp(), log_p.sub_(log_m))
        gap = log_m.neg_().add_(log_q)
        q = log_q.exp_()
        of_student = torch.linalg.vecdot(q, gap)
        scale = 1 / (beta * (1 - beta)) if self.normalize else 1.0
        loss = (beta * of_teacher + (1 - beta) * of_student) * scale
        return loss, gap.sub_(of_student.unsqueeze(-1)).mul_(q).mul_((1 - beta) * scale)
