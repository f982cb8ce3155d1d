"""Two copies that mask what the other shows, so that every token is asked for once.

Source: LLaDA2.0, arXiv:2512.15745 (complementary masking); coupled sampling of DiffuCoder,
arXiv:2506.20639. Each copy weighs half; both are unbiased, together they spread less. It costs
twice the reading of ``independent``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.noise import Copy, Noising

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.noise import Bools, Floats, Schedule

__all__ = ["Complementary"]


class Complementary(Noising):
    """A copy and its complement."""

    paper: ClassVar[str] = "arXiv:2512.15745"

    @override
    def copies(
        self, is_noised: Bools, t: Floats, schedule: Schedule, rng: np.random.Generator
    ) -> list[Copy]:
        share, slope = schedule.share(t), schedule.slope(t)
        is_masked = (rng.random(len(t)) < share) & is_noised
        others = ~is_masked & is_noised
        rest = (1 - share).clip(min=1e-9)
        return [
            Copy(is_masked, is_masked, slope / share / 2),
            Copy(others, others, slope / rest / 2),
        ]
