"""Adaptive KL: forward and reverse KL, weighted by the student's error in head and tail.

Source: Wu et al. 2024, arXiv:2404.02657, section 4. The head is the smallest set of the teacher's
most likely tokens with total probability ``head_mass``; the two KLs over the full vocabulary are
weighted by the shares of the L1 distance in head and tail. Weights are constant in the gradient, as
in the paper. For top-k targets the tail's bucket counts as one token. Sampled targets are rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["Akl"]

_FIRST_LOOK = 64


class Akl(DistillationObjective):
    """``w KL(p || q) + (1 - w) KL(q || p)``, w a row's share of ``|p - q|`` in the head."""

    paper: ClassVar[str] = "arXiv:2404.02657"
    detaches_weights: ClassVar[bool] = True

    head_mass: float = Field(
        default=0.5, gt=0, lt=1, description="total teacher probability of the head"
    )

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import forward_kl_terms, reverse_kl_terms

        gap = (pair.p - pair.q).abs_()
        total = gap.sum(-1, keepdim=True)
        share = gap.mul_(self._head(pair.p)).sum(-1, keepdim=True)
        share = (share / total).where(total > 0, 0.5)  # (n, 1)
        term, slope = forward_kl_terms(pair)
        back, back_slope = reverse_kl_terms(pair)
        return term.lerp_(back, 1 - share), slope.lerp_(back_slope, 1 - share)

    def _head(self, p: Tensor) -> Tensor:
        """Return the mask (n, V) of the most likely tokens that reach the head's mass.

        Tokens with equal probability to the last one are included, so that the result does not
        depend on the vocabulary's order.
        """
        width = min(_FIRST_LOOK, p.shape[-1])
        while True:
            top = p.topk(width, -1)  # most heads are short: sorting the vocabulary is rarely needed
            cumulative = top.values.cumsum(-1)
            if width == p.shape[-1] or bool((cumulative[:, -1] >= self.head_mass).all()):
                break
            width = min(4 * width, p.shape[-1])
        outside = cumulative - top.values >= self.head_mass
        least = top.values.masked_fill(outside, 1.0).amin(-1, keepdim=True)  # (n, 1)
        return p >= least
