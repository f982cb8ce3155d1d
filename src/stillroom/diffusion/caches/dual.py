"""Keys and values before and behind the block are kept while it is written.

Source: Wu et al. 2025, arXiv:2505.22618 (Fast-dLLM), section 3.2 (DualCache). The cheapest and the
most stale; exact with refresh 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.caching import CacheMethod, Session

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.caching import Ask
    from stillroom.diffusion.model import DiffusionModel

__all__ = ["Dual"]


class Dual(CacheMethod):
    """Only the block itself is read again."""

    paper: ClassVar[str] = "arXiv:2505.22618"
    is_exact: ClassVar[bool] = False

    refresh: int | None = Field(
        default=None,
        ge=1,
        description="steps from one reading of the whole text to the next; null is once a block; "
        "1 is exact",
    )

    @override
    def open(self, model: DiffusionModel, capacity: int) -> Session:
        import torch

        from stillroom.diffusion.stale import StaleSession

        def choose(ask: Ask, last: Tensor) -> Tensor:
            return torch.arange(ask.start, ask.stop)

        return StaleSession(model, capacity, choose, refresh=self.refresh)
