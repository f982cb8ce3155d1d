"""Total variation distance: half the L1 distance, at most 1 per position.

Source: Wen et al. 2023 (f-distill), arXiv:2307.15190, section 3. The gradient is 0 where p equals
q. The T² factor of ``t2_scale`` is justified for KLs only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["Tvd"]

_ROUNDING = 64


class Tvd(DistillationObjective):
    """``sum |p - q| / 2``."""

    paper: ClassVar[str] = "arXiv:2307.15190"

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        import torch

        gap = pair.q - pair.p
        term = gap.abs().mul_(0.5)
        noise = _ROUNDING / 2 * torch.finfo(gap.dtype).eps
        differs = term > (pair.p + pair.q).mul_(noise)  # equality up to rounding
        return term, gap.sign_().mul_(0.5).mul_(differs).mul_(pair.q)

    @override
    def control_variate(self, pair: DistributionPair) -> tuple[float, float]:
        return 0.5, 0.5
