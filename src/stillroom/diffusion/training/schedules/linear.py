"""Linear noise schedule (alpha_t = 1 - t): masking ratio t.

Source: Sahoo et al. 2024, arXiv:2406.07524 (log-linear); Nie et al. 2025, arXiv:2502.09992.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import NoiseSchedule

if TYPE_CHECKING:
    from stillroom.diffusion.interfaces import Floats

__all__ = ["Linear"]


class Linear(NoiseSchedule):
    """Masking ratio t."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def share(self, t: Floats) -> Floats:
        return t

    @override
    def slope(self, t: Floats) -> Floats:
        return t * 0 + 1
