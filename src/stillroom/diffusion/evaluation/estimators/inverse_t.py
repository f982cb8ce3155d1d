"""Bernoulli masks weighted by 1/t, as in the training loss, for the Monte Carlo estimate.

Source: Sahoo et al. 2024, arXiv:2406.07524, equation 11; Nie et al. 2025, arXiv:2502.09992,
equation 4. Its variance is far higher than that of low_variance; included as a baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.evaluation.monte_carlo import MonteCarloEstimator

if TYPE_CHECKING:
    import torch

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood

__all__ = ["InverseT"]


class InverseT(MonteCarloEstimator):
    """1 / t times the loss of tokens masked with probability t, t uniform on [0, 1]."""

    paper: ClassVar[str] = "arXiv:2406.07524"

    @override
    def draw_masks(
        self, scorer: MaskedLikelihood, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
        return masks, weights
