"""MiniLLM: sequence-level reverse KL by policy gradient, its single-step part in closed form.

Source: Gu et al. 2023, arXiv:2306.08543, section 2.2 and algorithm 1. The gradient of the
sequence-level reverse KL is split: the single-step part is the exact reverse KL at each position
over the full vocabulary; the part of the following tokens is a policy gradient whose return is
divided by their number, so that short texts are not preferred. ``rollouts: mixed_sampling`` samples
from the paper's mixture with the teacher; ``ce_weight`` on the records replaces its language-model
loss on other text. ``whiten`` and ``clip`` are those of its released code, whose clipping and
scaling of rewards are omitted. Credits are constant in the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import PolicyGradientObjective

if TYPE_CHECKING:
    from stillroom.distill.interfaces import Numbers

__all__ = ["Minillm"]


class Minillm(PolicyGradientObjective):
    """Exact reverse KL at each sampled token plus a policy gradient for the following tokens."""

    paper: ClassVar[str] = "arXiv:2306.08543"
    needs_target: ClassVar[bool] = True

    discount: float = Field(default=1.0, ge=0, le=1, description="discount factor of the return")
    length_normalize: bool = Field(
        default=True, description="divide a return by its (discounted) number of tokens"
    )
    whiten: bool = Field(
        default=True, description="scale the step's credits to mean 0 and standard deviation 1"
    )

    @override
    def credit(self, gains: Sequence[Numbers]) -> list[Numbers]:
        import numpy as np

        credits = []
        for gain in gains:
            credit, total, count = np.zeros(len(gain)), 0.0, 0.0
            for position in range(len(gain) - 1, -1, -1):
                # the following tokens only: the token itself is in the exact part
                credit[position] = total / max(count, 1.0) if self.length_normalize else total
                total = gain[position] + self.discount * total
                count = 1.0 + self.discount * count
            credits.append(credit)
        if not self.whiten or not credits:
            return credits
        joined = np.concatenate(credits)
        spread = float(joined.std())
        return [(credit - joined.mean()) / (spread or 1.0) for credit in credits]
