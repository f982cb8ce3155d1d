"""Masks of a uniformly drawn number, for the Monte Carlo estimate: same mean, lower variance.

Source: Nie et al. 2025, arXiv:2502.09992, equation 6. The number of masks l is stratified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.evaluation.monte_carlo import MonteCarloEstimator

if TYPE_CHECKING:
    import torch

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood

__all__ = ["LowVariance"]


class LowVariance(MonteCarloEstimator):
    """L / l times the loss of l masked tokens, l uniform on 1 to L."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    samples: int = Field(default=32, ge=1, le=100_000, description="number of masks")
    is_stratified: bool = Field(
        default=True, description="draw the number of masked tokens by stratified sampling"
    )

    @override
    def draw_masks(
        self, scorer: MaskedLikelihood, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        masks = torch.zeros(self.samples, len(scorer.places), dtype=torch.bool)
        weights = torch.zeros(self.samples, len(scorer.places), dtype=torch.float64)
        for group in scorer.groups:
            size = len(group)
            shares = torch.rand(self.samples, generator=rng, dtype=torch.float64)
            if self.is_stratified:
                shares = (torch.arange(self.samples) + shares) / self.samples
            for row, share in enumerate(shares.tolist()):
                count = min(int(share * size) + 1, size)
                masked = group[torch.randperm(size, generator=rng)[:count]]
                masks[row, masked] = True
                weights[row, masked] = size / count
        return masks, weights
