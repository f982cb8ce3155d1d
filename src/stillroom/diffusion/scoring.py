"""How likely a text is: what an estimator is given, and what it gives back with its error.

A diffusion model has no likelihood that one pass could read off. It has a bound, an average over
masks; every estimator of it says how large its error is and what it cost. The bound is that of the
model's own factorization: where attention is by blocks, the sum over blocks of each one's bound
given the clean ones before, which one pass over a noisy and a clean copy gives.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    import torch

    from stillroom.diffusion.likelihood import Scorer

__all__ = ["ESTIMATORS", "Bound", "Estimator", "error_of"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A text's log-likelihood, or a lower bound of it, in nats.

    Args:
        value: Nats; at most 0.
        error: Standard error of the value; 0 where nothing was drawn.
        forwards: Texts that were read.
        samples: Masks or orders that were drawn; 0 where nothing was.
        tokens: How many tokens the value is about.
        kind: ``bound`` is at most the log-likelihood; ``order`` is the log-likelihood of writing in
            one order, whose mean over all orders is the bound.
    """

    value: float
    error: float
    forwards: int
    samples: int
    tokens: int
    kind: Literal["bound", "order"] = "bound"

    @property
    def per_token(self) -> float:
        """Nats a token, as a loss: at least 0."""
        return -self.value / self.tokens if self.tokens else 0.0

    def samples_for(self, error: float) -> int:
        """Return how many samples would bring the standard error down to ``error`` nats."""
        if error <= 0:
            raise ValueError("an error of 0 takes infinitely many samples")
        return max(1, math.ceil(self.samples * (self.error / error) ** 2))


class Estimator(Method):
    """A way to estimate the bound."""

    @abstractmethod
    def estimate(self, scorer: Scorer, rng: torch.Generator) -> Bound:
        """Estimate one text's bound.

        Args:
            scorer: Gives log-probabilities of the text's own tokens under any masks.
            rng: Draws masks.

        Raises:
            DataError: If the text is longer than the estimator can do.
        """


def error_of(values: Sequence[float], *, is_paired: bool = False) -> float:
    """Return the standard error of the mean of draws.

    Args:
        values: Draws.
        is_paired: Whether they come from strata in order, one draw each: then neighbors are
            compared, which leaves out what differs between distant strata. It is never too small
            in expectation.
    """
    count = len(values)
    if count < 2:
        return math.inf
    if not is_paired:
        mean = math.fsum(values) / count
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    pairs = [(values[at], values[at + 1]) for at in range(0, count - 1, 2)]
    squares = math.fsum((one - other) ** 2 for one, other in pairs)
    return math.sqrt(squares * count / (2 * len(pairs))) / count


ESTIMATORS = Seam("stillroom.diffusion.estimators", Estimator)
