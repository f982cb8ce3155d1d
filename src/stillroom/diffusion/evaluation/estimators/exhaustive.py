"""Exact bound by enumeration of all masks, for short answers.

Source: the mean over orders, Uria et al. 2014, arXiv:1310.1757; Ou et al. 2024, arXiv:2406.03736.
A mask of l among L tokens has weight 1 / (l C(L, l)).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import LikelihoodEstimate, LikelihoodEstimator
from stillroom.errors import DataError

if TYPE_CHECKING:
    import torch

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood

__all__ = ["Exhaustive"]


class Exhaustive(LikelihoodEstimator):
    """Enumeration of all 2^L - 1 masks."""

    paper: ClassVar[str] = "arXiv:2406.03736"

    most_tokens: int = Field(
        default=12, ge=1, le=20, description="maximum length of the answer, or of a block of it"
    )

    @override
    def estimate(self, scorer: MaskedLikelihood, rng: torch.Generator) -> LikelihoodEstimate:
        import torch

        groups = scorer.groups
        longest = max(len(group) for group in groups)
        if longest > self.most_tokens:
            raise DataError(
                f"{longest} tokens have {2**longest - 1} masks",
                code="diffusion.too-long",
                expected=f"at most {self.most_tokens} tokens",
                next="use estimator low_variance, or raise most_tokens",
            )
        # groups are independent, so the masks of all groups are enumerated in parallel
        numbers = torch.arange(1, 2**longest)
        masks = torch.zeros(len(numbers), len(scorer.places), dtype=torch.bool)
        weights = torch.zeros(masks.shape, dtype=torch.float64)
        for group in groups:
            size = len(group)
            bits = (numbers[: 2**size - 1, None] >> torch.arange(size)) & 1
            rows = torch.arange(2**size - 1)[:, None]
            masks[rows, group] = bits.bool()
            counts = bits.sum(1)
            chances = [1 / (count * math.comb(size, count)) for count in counts.tolist()]
            weights[rows, group] = torch.tensor(chances, dtype=torch.float64)[:, None] * bits
        value = float((scorer.logprobs(masks) * weights).sum())
        return LikelihoodEstimate(value, 0.0, scorer.forwards, 0, len(scorer.places))
