"""All tokens above a confidence threshold (parallel decoding), and at least the first.

Source: Wu et al. 2025, arXiv:2505.22618 (Fast-dLLM), section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskRule

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["Threshold"]


class Threshold(UnmaskRule):
    """Those with a confidence above ``threshold``, and at least the first ``least``."""

    paper: ClassVar[str] = "arXiv:2505.22618"

    threshold: float = Field(
        default=0.9, ge=0, le=1, description="confidence above which a position is unmasked"
    )
    least: int = Field(default=1, ge=1, description="minimum number of positions per step")

    @override
    def take(self, view: Candidates) -> Tensor:
        import torch

        is_first = torch.arange(len(view.places)) < self.least
        return (view.confidence > self.threshold) | is_first
