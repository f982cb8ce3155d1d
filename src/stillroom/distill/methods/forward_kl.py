"""Forward KL, KL(p || q): mean-seeking, covers all modes of the teacher.

Source: Hinton et al. 2015, arXiv:1503.02531, section 2. The value is the divergence, not the
cross-entropy with soft targets, so that its minimum is 0 and it is comparable across teachers. With
sampled targets: Anshumann et al. 2025, arXiv:2503.16870, section 4, an unbiased estimate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["ForwardKl"]


class ForwardKl(DistillationObjective):
    """Sum over the vocabulary of ``p (log p - log q)``; its gradient is ``q - p``."""

    paper: ClassVar[str] = "arXiv:1503.02531"

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import forward_kl_terms

        return forward_kl_terms(pair)

    @override
    def control_variate(self, pair: DistributionPair) -> tuple[float, float]:
        return 0.0, 1.0
