"""Dynamic length: expands the text while the end is uncertain, and where confidence is lowest.

Source: Li et al. 2025, arXiv:2508.00819 (DAEDAL): before decoding, mask tokens are appended until
the last ones predict the end with confidence; while decoding, a position of very low confidence is
expanded to several as long as the end is uncertain.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import LengthPolicy

__all__ = ["Daedal"]


class Daedal(LengthPolicy):
    """Grow from ``initial`` to at most ``max_new_tokens`` positions."""

    paper: ClassVar[str] = "arXiv:2508.00819"
    needs_whole: ClassVar[bool] = True

    initial: int = Field(default=64, ge=1, description="initial number of mask tokens")
    factor: int = Field(default=8, ge=1, description="mask tokens added at a time")
    end_window: int = Field(default=32, ge=1, description="last positions that predict the end")
    extend_below: float = Field(
        default=0.5, ge=0, le=1, description="append while the end confidence is below"
    )
    expand_below: float = Field(
        default=0.1, ge=0, le=1, description="expand positions whose confidence is below"
    )
    sure_end: float = Field(
        default=0.9, ge=0, le=1, description="expand only while the end confidence is below"
    )

    @property
    @override
    def window(self) -> int:
        return self.end_window

    @override
    def start(self, max_new_tokens: int) -> int:
        return min(self.initial, max_new_tokens)

    @override
    def extend(self, end_confidence: float, room: int) -> int:
        return min(self.factor, room) if end_confidence < self.extend_below else 0

    @override
    def expand(self, least_confidence: float, end_confidence: float, room: int) -> int:
        is_due = least_confidence < self.expand_below and end_confidence < self.sure_end
        return min(self.factor - 1, room) if is_due else 0
