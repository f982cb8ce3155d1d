"""Equal share of the block in each step: ``steps`` and ``num_transfer_tokens`` of LLaDA.

Source: Nie et al. 2025, arXiv:2502.09992, algorithm 5 (uniform steps). Earlier steps take the
remainder. Steps beyond the number of positions in a block are skipped. Positions that are not
candidates (end tokens, if last) count in the share, so that the others are not delayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskRule

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates, StepIndex

__all__ = ["Quota"]


class Quota(UnmaskRule):
    """As many as make the sequence take ``steps`` steps."""

    paper: ClassVar[str] = "arXiv:2502.09992"
    has_plan: ClassVar[bool] = True

    steps: int | None = Field(
        default=None,
        ge=1,
        description="steps of the whole sequence, shared evenly by its blocks; null: one per token",
    )

    @override
    def plan(self, step: StepIndex) -> int:
        if self.steps is None:
            return step.opened
        share = self.steps // step.blocks + (step.block < self.steps % step.blocks)
        return max(1, min(share, step.opened))

    @override
    def take(self, view: Candidates) -> Tensor:
        import torch

        remaining = self.plan(view.step) - view.step.number
        share = -(-view.open_count // max(remaining, 1))
        return torch.arange(len(view.places)) < share
