"""Forward KL, KL(p || q): the student covers all that the teacher finds likely.

Source: Hinton et al. 2015, arXiv:1503.02531, section 2. The value is the divergence itself, not the
cross-entropy with soft targets, so that it reaches 0 and compares across teachers. With sampled
targets: Anshumann et al. 2025, arXiv:2503.16870, section 4, an unbiased estimate of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.targets import Sampled

__all__ = ["ForwardKl"]


class ForwardKl(Objective):
    """Sum over the vocabulary of ``p (log p - log q)``; its gradient is ``q - p``."""

    paper: ClassVar[str] = "arXiv:1503.02531"
    takes_samples: ClassVar[bool] = True

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        gap = log_p - log_q
        p = log_p.exp_()
        loss = torch.linalg.vecdot(p, gap)
        return loss, log_q.exp_().sub_(p)

    @override
    def compare_samples(self, log_q: Tensor, target: Sampled) -> tuple[Tensor, Tensor]:
        gap = target.logprobs - log_q.gather(-1, target.ids)
        loss = (target.weights * gap).sum(-1)
        return loss, log_q.exp_().scatter_add_(-1, target.ids, -target.weights.to(log_q.dtype))
