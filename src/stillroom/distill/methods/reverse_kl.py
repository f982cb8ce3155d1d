"""Reverse KL, KL(q || p): mode-seeking, may drop modes of the teacher.

Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1, here per token and over the full
vocabulary, on the records' text: no sampling and no policy gradient, unlike the paper. Sampled
targets are rejected: as p / q vanishes a term is unbounded, and so is the variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.interfaces import DistillationObjective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.losses.divergence import DistributionPair

__all__ = ["ReverseKl"]


class ReverseKl(DistillationObjective):
    """Sum of ``q (log q - log p)``; its gradient is ``q (log q - log p - loss)``."""

    paper: ClassVar[str] = "arXiv:2306.08543"

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.losses.divergence import reverse_kl_terms

        return reverse_kl_terms(pair)
