"""Polynomial noise schedule: a power of the time t as the masking ratio.

Source: Shi et al. 2024, arXiv:2406.04329 (MD4), polynomial schedules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import NoiseSchedule

if TYPE_CHECKING:
    from stillroom.diffusion.interfaces import Floats

__all__ = ["Polynomial"]


class Polynomial(NoiseSchedule):
    """Masking ratio t ** power."""

    paper: ClassVar[str] = "arXiv:2406.04329"

    power: float = Field(default=2.0, gt=0, le=16, description="exponent; 1 is linear")

    @override
    def share(self, t: Floats) -> Floats:
        return t**self.power

    @override
    def slope(self, t: Floats) -> Floats:
        return self.power * t ** (self.power - 1)
