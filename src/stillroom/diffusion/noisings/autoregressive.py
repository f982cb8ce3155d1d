"""Nothing is masked and every token is asked for: the next-token loss of a causal model.

Source: none of diffusion's; the twin that a diffusion model is compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from stillroom.diffusion.noise import Copy, Noising

if TYPE_CHECKING:
    import numpy as np

    from stillroom.diffusion.noise import Bools, Floats, Schedule

__all__ = ["Autoregressive"]


class Autoregressive(Noising):
    """One clean copy; needs attention causal and shifted logits."""

    paper: ClassVar[str] = "none"
    is_causal: ClassVar[bool] = True

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that attention is causal and logits are shifted."""
        return {"attention": "causal", "logit_shift": True}

    @override
    def copies(
        self, is_noised: Bools, t: Floats, schedule: Schedule, rng: np.random.Generator
    ) -> list[Copy]:
        return [Copy(is_noised & False, is_noised, t * 0 + 1)]
