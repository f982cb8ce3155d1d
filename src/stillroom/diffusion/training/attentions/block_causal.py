"""Block-causal attention (block diffusion): a block attends to itself and clean earlier blocks.

Source: Arriola et al. 2025 (block diffusion), arXiv:2503.09573; growing blocks as in the warmup of
LLaDA2.0, arXiv:2512.15745. ``diffusion.model.network`` builds the masks.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import TrainingAttention

__all__ = ["BlockCausal"]

_GROWTH_DIVISOR = 2  # blocks grow over the first half of the steps


class BlockCausal(TrainingAttention):
    """Attention by blocks, whose size may grow; texts are read as a noisy and a clean copy."""

    paper: ClassVar[str] = "arXiv:2503.09573"
    kind: ClassVar[Literal["full", "block_causal"]] = "block_causal"
    num_copies: ClassVar[int] = 2

    block_size: int = Field(ge=1, description="tokens per block")
    growth: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="block sizes of the first half of the steps, in equal parts, e.g. [1, 4, 16]",
    )

    @property
    @override
    def final_block_size(self) -> int | None:
        return self.block_size

    @property
    @override
    def grows(self) -> bool:
        return bool(self.growth)

    @override
    def block_size_at(self, step: int, steps: int) -> int | None:
        stage = step * _GROWTH_DIVISOR * len(self.growth) // max(steps, 1)
        return self.growth[stage] if stage < len(self.growth) else self.block_size
