"""Full (bidirectional) attention: every position attends to all others.

Source: Nie et al. 2025, arXiv:2502.09992; annealing from causal attention by Gong et al. 2024
(DiffuLLaMA), arXiv:2410.17891. Differs: with annealing, later positions become visible one by one,
with a probability that rises to 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import TrainingAttention

__all__ = ["Full"]


class Full(TrainingAttention):
    """Bidirectional attention, optionally annealed from causal attention."""

    paper: ClassVar[str] = "arXiv:2502.09992"
    kind: ClassVar[Literal["full", "block_causal"]] = "full"

    anneal_steps: int = Field(
        default=0,
        ge=0,
        description="steps over which causal attention becomes full; 0: full from the start",
    )

    @override
    def visible_share(self, step: int) -> float:
        return (step + 1) / self.anneal_steps if step + 1 < self.anneal_steps else 1.0
