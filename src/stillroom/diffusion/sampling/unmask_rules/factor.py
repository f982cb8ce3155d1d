"""Factor-based unmasking: the more tokens in parallel, the higher the required confidence.

Source: Wu et al. 2025, arXiv:2505.22618 (Fast-dLLM), section 3.3: the largest n with
(n + 1)(1 - c_n) < f, where c_n is the nth highest confidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskRule

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["Factor"]


class Factor(UnmaskRule):
    """The longest prefix that satisfies (n + 1)(1 - c_n) < ``factor``."""

    paper: ClassVar[str] = "arXiv:2505.22618"

    factor: float = Field(default=1.0, gt=0, description="factor f of the rule")

    @override
    def take(self, view: Candidates) -> Tensor:
        import torch

        rank = torch.arange(1, len(view.places) + 1)
        holds = (rank + 1) * (1 - view.confidence) < self.factor
        holds[0] = True
        # in order of confidence the condition is monotonic
        return holds.cumprod(0).bool()
