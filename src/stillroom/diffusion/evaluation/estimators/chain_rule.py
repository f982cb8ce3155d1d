"""Chain rule over one or several token orders: exact per order, the bound on average.

Source: Nie et al. 2024, arXiv:2410.18514 (SMDM), likelihood by the chain rule; Hoogeboom et al.
2022, arXiv:2110.02037 (any-order autoregression).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.evaluation.monte_carlo import compute_standard_error
from stillroom.diffusion.interfaces import LikelihoodEstimate, LikelihoodEstimator

if TYPE_CHECKING:
    import torch

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood

__all__ = ["ChainRule"]


class ChainRule(LikelihoodEstimator):
    """One forward pass per token and order; the tokens still to come are masked."""

    paper: ClassVar[str] = "arXiv:2410.18514"

    order: Literal["left_to_right", "random"] = Field(
        default="left_to_right", description="token order; random orders estimate the bound"
    )
    orders: int = Field(default=1, ge=1, le=10_000, description="number of random orders")

    @override
    def estimate(self, scorer: MaskedLikelihood, rng: torch.Generator) -> LikelihoodEstimate:
        import torch

        is_drawn = self.order == "random"
        values = []
        for _ in range(self.orders if is_drawn else 1):
            ranks = [
                torch.randperm(len(group), generator=rng) if is_drawn else torch.arange(len(group))
                for group in scorer.groups
            ]
            values.append(self.score_order(scorer, ranks))
        return LikelihoodEstimate(
            sum(values) / len(values),
            compute_standard_error(values) if is_drawn else 0.0,
            scorer.forwards,
            self.orders if is_drawn else 0,
            len(scorer.places),
            "bound" if is_drawn else "order",
        )

    def score_order(self, scorer: MaskedLikelihood, orders: list[torch.Tensor]) -> float:
        """Return the log-probability of decoding each group in its order, in nats.

        Args:
            scorer: Text and model.
            orders: Permutation of each group, the first position to decode first.
        """
        import torch

        groups = scorer.groups
        steps = max(len(group) for group in groups)
        masks = torch.zeros(steps, len(scorer.places), dtype=torch.bool)
        is_next = torch.zeros_like(masks)
        for group, order in zip(groups, orders, strict=True):
            for step in range(len(group)):
                masks[step, group[order[step:]]] = True
                is_next[step, group[order[step]]] = True
        return float(scorer.logprobs(masks)[is_next].sum())
