"""No masking: the next-token loss of a causal model.

Source: none; the autoregressive baseline of a diffusion model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from stillroom.diffusion.interfaces import Corruption, MaskedCopy

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.interfaces import Bools, Floats, NoiseSchedule

__all__ = ["Autoregressive"]


class Autoregressive(Corruption):
    """One clean copy; needs attention causal and shifted logits."""

    paper: ClassVar[str] = "none"
    is_causal: ClassVar[bool] = True

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return causal attention and shifted logits."""
        return {"attention": "causal", "logit_shift": True}

    @override
    def copies(
        self, is_noised: Bools, t: Floats, schedule: NoiseSchedule, rng: np.random.Generator
    ) -> list[MaskedCopy]:
        return [MaskedCopy(is_noised & False, is_noised, t * 0 + 1)]
