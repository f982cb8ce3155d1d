"""Monte Carlo estimate of a text's log-likelihood: mean and standard error over random masks.

LLaDA's ``get_log_likelihood``, with ``mc_num`` masks. The estimators draw the masks and their
weights; ``likelihood.MaskedLikelihood`` scores them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import LikelihoodEstimate, LikelihoodEstimator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood

__all__ = ["MonteCarloEstimator", "compute_standard_error"]


class MonteCarloEstimator(LikelihoodEstimator):
    """Mean over drawn masks of the weighted log-probabilities of the masked tokens."""

    samples: int = Field(default=128, ge=1, le=100_000, description="number of masks")
    is_stratified: bool = Field(default=False, description="draw t by stratified sampling")

    @abstractmethod
    def draw_masks(self, scorer: MaskedLikelihood, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the masks, (samples, L) bool, and the weight of each token, float64."""

    @override
    def estimate(self, scorer: MaskedLikelihood, rng: torch.Generator) -> LikelihoodEstimate:
        import torch

        masks, weights = self.draw_masks(scorer, rng)
        used = masks.any(1)
        draws = torch.zeros(self.samples, dtype=torch.float64)
        if bool(used.any()):
            draws[used] = (scorer.logprobs(masks[used]) * weights[used]).sum(1)
        values = draws.tolist()
        is_paired = self.is_stratified and self.samples > 1
        return LikelihoodEstimate(
            sum(values) / len(values),
            compute_standard_error(values, is_paired=is_paired),
            scorer.forwards,
            self.samples,
            len(scorer.places),
        )


def compute_standard_error(values: Sequence[float], *, is_paired: bool = False) -> float:
    """Return the standard error of the mean.

    Args:
        values: Samples.
        is_paired: Whether samples are from ordered strata, one each: then neighbors are compared,
            which excludes the variance between distant strata. Never too small in expectation.
    """
    count = len(values)
    if count < 2:
        return math.inf
    if not is_paired:
        mean = math.fsum(values) / count
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    pairs = [(values[index], values[index + 1]) for index in range(0, count - 1, 2)]
    squares = math.fsum((first - second) ** 2 for first, second in pairs)
    return math.sqrt(squares * count / (2 * len(pairs))) / count
