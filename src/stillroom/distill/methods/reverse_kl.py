"""Reverse KL, KL(q || p): the student keeps to what the teacher finds likely, and may leave modes.

Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1, here per token and over the whole
vocabulary, on the records' text: no sampling and no policy gradient, unlike the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ReverseKl"]


class ReverseKl(Objective):
    """Sum of ``q (log q - log p)``; its gradient is ``q (log q - log p - loss)``."""

    paper: ClassVar[str] = "arXiv:2306.08543"

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        gap = log_q - log_p
        q = log_q.exp_()
        loss = torch.linalg.vecdot(q, gap)
        return loss, gap.sub_(loss.unsqueeze(-1)).mul_(q)
