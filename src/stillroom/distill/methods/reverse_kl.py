"""Reverse KL, KL(q || p): the student keeps to what the teacher finds likely, and may leave modes.

Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1, here per token and over the whole
vocabulary, on the records' text: no sampling and no policy gradient, unlike the paper. Sampled
targets are refused: where p vanishes beside q a term grows without bound, and so does the variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.divergence import Pair

__all__ = ["ReverseKl"]


class ReverseKl(Objective):
    """Sum of ``q (log q - log p)``; its gradient is ``q (log q - log p - loss)``."""

    paper: ClassVar[str] = "arXiv:2306.08543"

    @override
    def terms(self, pair: Pair) -> tuple[Tensor, Tensor]:
        from stillroom.distill.divergence import reverse_terms

        return reverse_terms(pair)
