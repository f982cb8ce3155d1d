"""LLaDA's forward process: each token masked independently (absorbing state), NELBO weight 1/t.

``forward_process`` of LLaDA. The negative evidence lower bound (ELBO) is this weight times
``masked_cross_entropy`` of ``training.loss``.

Source: Nie et al. 2025, arXiv:2502.09992, equation 3; Sahoo et al. 2024, arXiv:2406.07524.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import Corruption, MaskedCopy

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.interfaces import Bools, Floats, NoiseSchedule

__all__ = ["Independent"]


class Independent(Corruption):
    """One copy; masked tokens have weight slope / share, which is 1/t for a linear schedule."""

    paper: ClassVar[str] = "arXiv:2502.09992"

    @override
    def copies(
        self, is_noised: Bools, t: Floats, schedule: NoiseSchedule, rng: np.random.Generator
    ) -> list[MaskedCopy]:
        share = schedule.share(t)
        is_masked = (rng.random(len(t)) < share) & is_noised
        return [MaskedCopy(is_masked, is_masked, schedule.slope(t) / share)]
