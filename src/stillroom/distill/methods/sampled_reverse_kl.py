"""Sampled reverse KL: policy gradient from the log-probabilities of sampled tokens only.

Source: K. Lu and Thinking Machines Lab 2025, "On-Policy Distillation" (blog), after the on-policy
view of Agarwal et al. 2023, arXiv:2306.13649: a token's credit is the teacher's log-probability
minus the student's at sampling time, without a task reward; ``discount`` 0 credits a token only
with itself, 1 with all that follow. At discount 0 the expected gradient is that of ``reverse_kl``
at each position; the variance is far greater. A teacher that only scores tokens is sufficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import PolicyGradientObjective

if TYPE_CHECKING:
    from stillroom.distill.interfaces import Numbers

__all__ = ["SampledReverseKl"]


class SampledReverseKl(PolicyGradientObjective):
    """``A_t = sum of discount^k (log p - log q)`` over the tokens from t on, minus a baseline."""

    paper: ClassVar[str] = "arXiv:2306.13649"

    discount: float = Field(
        default=0.0, ge=0, le=1, description="discount factor of the following tokens' gains"
    )
    baseline: Literal["none", "mean"] = Field(
        default="none",
        description="mean: subtract the mean credit of the step's tokens, which lowers the "
        "variance and adds a bias of 1 / number of tokens",
    )

    @override
    def credit(self, gains: Sequence[Numbers]) -> list[Numbers]:
        import numpy as np

        credits = []
        for gain in gains:
            credit, total = np.zeros(len(gain)), 0.0
            for position in range(len(gain) - 1, -1, -1):
                total = credit[position] = gain[position] + self.discount * total
            credits.append(credit)
        if self.baseline == "none" or not credits:
            return credits
        mean = np.concatenate(credits).mean()
        return [credit - mean for credit in credits]
