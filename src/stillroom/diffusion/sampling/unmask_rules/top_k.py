"""Fixed number of tokens in each step: those that the unmask order (confidence) ranks first.

Source: Chang et al. 2022, arXiv:2202.04200, with a constant schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskRule

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates, StepIndex

__all__ = ["TopK"]


class TopK(UnmaskRule):
    """The first ``k`` by rank."""

    paper: ClassVar[str] = "arXiv:2202.04200"
    has_plan: ClassVar[bool] = True

    k: int = Field(default=1, ge=1, description="positions per step")

    @override
    def plan(self, step: StepIndex) -> int:
        return -(-step.opened // self.k)

    @override
    def take(self, view: Candidates) -> Tensor:
        import torch

        return torch.arange(len(view.places)) < self.k
