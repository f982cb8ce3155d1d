"""DistiLLM-2 contrastive loss: skew KL on teacher text, skew reverse KL on student text.

Source: Ko et al. 2025, arXiv:2503.07067, section 3: raise what the teacher wrote, lower what the
student wrote and the teacher would not. Positions of the student's own text are told apart by the
batch; without them the method is refused in training. The paper's schedules of alpha and beta, off
in its released code, are left out: both are constant.
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

__all__ = ["Distillm2"]


class Distillm2(DistillationObjective):
    """``2 - beta`` times the skew KL at one kind of position, beta times the reverse at the other.

    Positions that nobody marks as the student's text count as the teacher's.
    """

    paper: ClassVar[str] = "arXiv:2503.07067"
    needs_rollouts: ClassVar[bool] = True

    alpha: float = Field(default=0.1, gt=0, lt=1, description="share of its own side in a mixture")
    beta: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="weight of the student's text, of 2 in all",
    )

    @property
    @override
    def takes_samples(self) -> bool:
        return True

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import skew_forward_kl_terms, skew_reverse_kl_terms

        own = pair.rollout
        if own is None or not bool(own.any()):
            return _times(skew_forward_kl_terms(pair, self.alpha), 2 - self.beta)
        if bool(own.all()):
            return _times(skew_reverse_kl_terms(pair, self.alpha), self.beta)
        forward = _times(skew_forward_kl_terms(pair.select(~own), self.alpha), 2 - self.beta)
        reverse = _times(skew_reverse_kl_terms(pair.select(own), self.alpha), self.beta)
        return _join(own, forward[0], reverse[0]), _join(own, forward[1], reverse[1])

    @override
    def vanishing(self, pair: DistributionPair) -> tuple[Tensor | float, Tensor | float]:
        limit = -math.log(self.alpha)
        forward = 0.0, (1 - self.alpha) * (2 - self.beta)
        reverse = limit * self.beta, (limit + self.alpha - 1) * self.beta
        if pair.rollout is None:
            return forward
        own = pair.rollout.unsqueeze(-1).to(pair.log_q.dtype)  # (n, 1)
        term, slope = (at + own * (to - at) for at, to in zip(forward, reverse, strict=True))
        return term, slope


def _times(terms: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    return terms[0].mul_(weight), terms[1].mul_(weight)


def _join(own: Tensor, forward: Tensor, reverse: Tensor) -> Tensor:
    joined = forward.new_empty(own.shape[0], forward.shape[-1])
    joined[~own], joined[own] = forward, reverse
    return joined
