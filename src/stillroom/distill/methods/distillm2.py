"""DistiLLM-2 contrastive loss: skew KL on teacher text, skew reverse KL on student text.

Source: Ko et al. 2025, arXiv:2503.07067, section 3: raise the probability of the teacher's text,
lower that of the student's text where the teacher disagrees. Positions in the student's text are
marked by the batch; without marks the method is rejected in training. The paper's schedules of
alpha and beta, disabled in its released code, are omitted: both are constant.
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
    """``2 - beta`` times skew KL on the teacher's text, beta times its reverse on the student's.

    Unmarked positions count as the teacher's text.
    """

    paper: ClassVar[str] = "arXiv:2503.07067"
    needs_rollouts: ClassVar[bool] = True

    alpha: float = Field(default=0.1, gt=0, lt=1, description="mixture weight of a KL's own side")
    beta: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="weight of the student's text, out of 2",
    )

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import skew_forward_kl_terms, skew_reverse_kl_terms

        is_student = pair.rollout
        if is_student is None or not bool(is_student.any()):
            return _times(skew_forward_kl_terms(pair, self.alpha), 2 - self.beta)
        if bool(is_student.all()):
            return _times(skew_reverse_kl_terms(pair, self.alpha), self.beta)
        forward = _times(skew_forward_kl_terms(pair.select(~is_student), self.alpha), 2 - self.beta)
        reverse = _times(skew_reverse_kl_terms(pair.select(is_student), self.alpha), self.beta)
        return _join(is_student, forward[0], reverse[0]), _join(is_student, forward[1], reverse[1])

    @override
    def control_variate(self, pair: DistributionPair) -> tuple[Tensor | float, Tensor | float]:
        limit = -math.log(self.alpha)
        forward = 0.0, (1 - self.alpha) * (2 - self.beta)
        reverse = limit * self.beta, (limit + self.alpha - 1) * self.beta
        if pair.rollout is None:
            return forward
        is_student = pair.rollout.unsqueeze(-1).to(pair.log_q.dtype)  # (n, 1)
        term, slope = (
            forward_limit + is_student * (reverse_limit - forward_limit)
            for forward_limit, reverse_limit in zip(forward, reverse, strict=True)
        )
        return term, slope


def _times(terms: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    return terms[0].mul_(weight), terms[1].mul_(weight)


def _join(is_student: Tensor, forward: Tensor, reverse: Tensor) -> Tensor:
    joined = forward.new_empty(is_student.shape[0], forward.shape[-1])
    joined[~is_student], joined[is_student] = forward, reverse
    return joined
