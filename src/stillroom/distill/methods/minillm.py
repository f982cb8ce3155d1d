"""MiniLLM: sequence-level reverse KL by policy gradient, its single-step part in closed form.

Source: Gu et al. 2023, arXiv:2306.08543, section 2.2 and algorithm 1. The gradient of the reverse
KL of whole texts is split: the part of the token itself is the exact reverse KL at its position,
over the whole vocabulary; the part of the tokens after it is a policy gradient whose return is
divided by their number, so that short texts are not preferred. ``rollouts: mixed_sampling`` draws
from the paper's mixture with the teacher; ``ce_weight`` on the records takes the place of its
language-modelling loss on other text. ``whiten`` and ``clip`` are those of its released code, whose
clipping and scaling of rewards are left out. Credits are held fixed in the gradient.
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
    """Exact reverse KL at each drawn token plus a policy gradient for what comes after it."""

    paper: ClassVar[str] = "arXiv:2306.08543"
    needs_target: ClassVar[bool] = True

    discount: float = Field(
        default=1.0, ge=0, le=1, description="weight of each further token in the return"
    )
    length_normalize: bool = Field(
        default=True, description="divide a return by the (discounted) number of its tokens"
    )
    whiten: bool = Field(
        default=True, description="scale the step's credits to mean 0 and standard deviation 1"
    )

    @override
    def credit(self, gains: Sequence[Numbers]) -> list[Numbers]:
        import numpy as np

        found = []
        for gain in gains:
            credit, later, count = np.zeros(len(gain)), 0.0, 0.0
            for at in range(len(gain) - 1, -1, -1):
                # what comes after the token: the token itself is in the exact part
                credit[at] = later / max(count, 1.0) if self.length_normalize else later
                later = gain[at] + self.discount * later
                count = 1.0 + self.discount * count
            found.append(credit)
        if not self.whiten or not found:
            return found
        every = np.concatenate(found)
        spread = float(every.std())
        return [(credit - every.mean()) / (spread or 1.0) for credit in found]
