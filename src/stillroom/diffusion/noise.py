"""The base classes of training noise: how much is masked at time t, and what one text becomes.

Imports no torch. A schedule says which share is masked at a time from 0 to 1 and how a masked token
weighs; any schedule has the same expected loss, they differ in its spread. A noising makes noisy
copies of one text.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]

__all__ = ["NOISINGS", "SCHEDULES", "Copy", "Noising", "Schedule"]


class Schedule(Method):
    """How much is masked at time t, from nothing at 0 to everything at 1."""

    @abstractmethod
    def share(self, t: Floats) -> Floats:
        """Return the chance that a token is masked at each time, (n,)."""

    @abstractmethod
    def slope(self, t: Floats) -> Floats:
        """Return the share's derivative by time, (n,); slope / share is a masked token's weight."""


@dataclass(frozen=True)
class Copy:
    """One noisy copy of a text.

    Args:
        is_masked: Which tokens the model does not see, (T,), bool.
        is_learned: Which tokens it is asked for, (T,), bool.
        weight: Of each asked token's loss, (T,), float64.
        t: The time that so much is masked at, (T,), where it is not the one that was given.
    """

    is_masked: Bools
    is_learned: Bools
    weight: Floats
    t: Floats | None = None


class Noising(Method):
    """Makes noisy copies of a text."""

    is_causal: ClassVar[bool] = False
    """Whether the copies are for a model that sees only what stands before."""

    @abstractmethod
    def copies(
        self, is_noised: Bools, t: Floats, schedule: Schedule, rng: np.random.Generator
    ) -> list[Copy]:
        """Return the copies whose summed losses estimate the text's bound.

        Args:
            is_noised: Which tokens may be masked, (T,), bool.
            t: The time at each token, (T,): one for the text, or one a block.
            schedule: Says shares and weights.
            rng: The text's own random numbers in this step.
        """


SCHEDULES = Seam("stillroom.diffusion.schedules", Schedule)
NOISINGS = Seam("stillroom.diffusion.noisings", Noising)
