"""Entropy-bounded unmasking: as many tokens as keep the joint dependence error below a bound.

Source: Ben-Hamu et al. 2025, arXiv:2505.24857 (EB-Sampler): the longest prefix of the ranking whose
summed entropy, less the largest one, is at most gamma; this bounds the nats lost to independence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import UnmaskRule

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import Candidates

__all__ = ["EntropyBound"]


class EntropyBound(UnmaskRule):
    """The longest prefix whose entropies, without the largest, sum to at most ``gamma``."""

    paper: ClassVar[str] = "arXiv:2505.24857"

    gamma: float = Field(default=0.1, ge=0, description="bound on the ignored dependence, in nats")

    @override
    def take(self, view: Candidates) -> Tensor:
        entropy = view.entropy
        holds = entropy.cumsum(0) - entropy.cummax(0).values <= self.gamma
        holds[0] = True
        return holds.cumprod(0).bool()
