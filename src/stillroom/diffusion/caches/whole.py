"""Nothing is kept: the whole visible text is read in every step.

Source: none; it is what the others are measured against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.caching import CacheMethod, Session

if TYPE_CHECKING:
    from stillroom.diffusion.caching import Ask, Reads
    from stillroom.diffusion.model import DiffusionModel

__all__ = ["Whole"]


class _Session(Session):
    @override
    def read(self, ask: Ask) -> Reads:
        import torch

        visible = self.visible(ask)
        chosen = torch.arange(visible)
        states = yield self.reading(ask, chosen, visible, want=ask.places - self.shift)
        return states


class Whole(CacheMethod):
    """Read everything, every time."""

    paper: ClassVar[str] = "none"

    @override
    def open(self, model: DiffusionModel, capacity: int) -> Session:
        return _Session(model)
