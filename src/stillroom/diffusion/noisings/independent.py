"""Each token is masked by its own chance, all at one time.

Source: Nie et al. 2025, arXiv:2502.09992, equation 3; Sahoo et al. 2024, arXiv:2406.07524.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.noise import Copy, Noising

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.noise import Bools, Floats, Schedule

__all__ = ["Independent"]


class Independent(Noising):
    """One copy; masked tokens weigh slope / share."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def copies(
        self, is_noised: Bools, t: Floats, schedule: Schedule, rng: np.random.Generator
    ) -> list[Copy]:
        share = schedule.share(t)
        is_masked = (rng.random(len(t)) < share) & is_noised
        return [Copy(is_masked, is_masked, schedule.slope(t) / share)]
