"""Monte Carlo estimate with Bernoulli masks weighted by 1/t, as in the training loss.

Source: Sahoo et al. 2024, arXiv:2406.07524, equation 11; Nie et al. 2025, arXiv:2502.09992,
equation 4. Its variance is far higher than that of low_variance; included as a baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import (
    LikelihoodEstimate,
    LikelihoodEstimator,
    compute_standard_error,
)

if TYPE_CHECKING:
    import torch

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood

__all__ = ["InverseT"]


class InverseT(LikelihoodEstimator):
    """1 / t times the loss of tokens masked with probability t, t uniform on [0, 1]."""

    paper: ClassVar[str] = "arXiv:2406.07524"

    samples: int = Field(default=128, ge=1, le=100_000, description="number of masks")
    is_stratified: bool = Field(default=False, description="draw t by stratified sampling")

    @override
    def estimate(self, scorer: MaskedLikelihood, rng: torch.Generator) -> LikelihoodEstimate:
        import torch

        masks = torch.zeros(self.samples, len(scorer.places), dtype=torch.bool)
        weights = torch.zeros(self.samples, len(scorer.places), dtype=torch.float64)
        for group in scorer.groups:
            share = torch.rand(self.samples, 1, generator=rng, dtype=torch.float64)
            if self.is_stratified:
                share = (torch.arange(self.samples)[:, None] + share) / self.samples
            shape = (self.samples, len(group))
            noise = torch.rand(*shape, generator=rng, dtype=torch.float64)
            masks[:, group] = noise < share
            weights[:, group] = 1 / share.clamp(min=2.0**-53).expand(shape)
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
