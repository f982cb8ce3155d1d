"""A fixed number of places in every step.

Source: Chang et al. 2022, arXiv:2202.04200, with a constant schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.steps import CommitRule

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.view import Step, View

__all__ = ["TopK"]


class TopK(CommitRule):
    """The first ``k``."""

    paper: ClassVar[str] = "arXiv:2202.04200"
    has_plan: ClassVar[bool] = True

    k: int = Field(default=1, ge=1, description="places a step")

    @override
    def plan(self, step: Step) -> int:
        return -(-step.opened // self.k)

    @override
    def take(self, view: View) -> Tensor:
        import torch

        return torch.arange(len(view.places)) < self.k
