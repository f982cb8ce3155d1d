"""Complementary masking: two copies, each masked where the other is not.

Source: LLaDA2.0, arXiv:2512.15745 (complementary masking); coupled sampling of DiffuCoder,
arXiv:2506.20639. Each copy has weight 1/2; both are unbiased, and their sum has a lower variance.
Costs twice the passes of ``independent``. Differs: the weight of the second copy is bounded where
nearly all tokens are masked in the first, as that of the first is by the recipe's t_min.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import Corruption, MaskedCopy

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.interfaces import Bools, Floats, NoiseSchedule

__all__ = ["Complementary"]

_LEAST_SHARE = 1e-3  # of the second copy; bounds its token weight


class Complementary(Corruption):
    """A masked copy and its complement."""

    paper: ClassVar[str] = "arXiv:2512.15745"
    num_copies: ClassVar[int] = 2

    @override
    def copies(
        self, is_noised: Bools, t: Floats, schedule: NoiseSchedule, rng: np.random.Generator
    ) -> list[MaskedCopy]:
        import numpy as np

        share, slope = schedule.share(t), schedule.slope(t)
        is_masked = (rng.random(len(t)) < share) & is_noised
        complement = ~is_masked & is_noised
        grid = np.linspace(0, 1, 1001)
        mirrored = np.interp(1 - share, schedule.share(grid), grid)
        complement_share = (1 - share).clip(min=_LEAST_SHARE)
        return [
            MaskedCopy(is_masked, is_masked, slope / share / 2),
            MaskedCopy(complement, complement, slope / complement_share / 2, mirrored),
        ]
