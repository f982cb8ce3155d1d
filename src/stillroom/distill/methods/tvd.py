"""Total variation distance: half the L1 distance, bounded by 1 at every position.

Source: Wen et al. 2023 (f-distill), arXiv:2307.15190, section 3. Where p and q are equal the
gradient is taken as 0. The T² factor of ``t2_scale`` is justified for KLs only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Tvd"]

_ROUNDING = 64


class Tvd(Objective):
    """``sum |p - q| / 2``."""

    paper: ClassVar[str] = "arXiv:2307.15190"

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        from stillroom.distill.divergence import through_softmax

        q, p = log_q.exp_(), log_p.exp_()
        gap = q - p
        loss = gap.abs().sum(-1) / 2
        noise = _ROUNDING * torch.finfo(q.dtype).eps
        differs = gap.abs() > noise * p.add_(q)  # equal up to rounding counts as equal
        return loss, through_softmax(q, gap.sign_().mul_(0.5).mul_(differs))
