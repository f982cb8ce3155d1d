"""Entropy-bounded unmasking: as many tokens as keep the joint dependence error below a bound.

Source: Ben-Hamu et al. 2025, arXiv:2505.24857 (EB-Sampler): the longest run of ranks whose summed
entropy, less the largest one, is at most gamma; that bounds the nats lost to independence.
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
    """The longest run of ranks whose entropies sum to ``gamma``, the largest left out."""

    paper: ClassVar[str] = "arXiv:2505.24857"

    gamma: float = Field(default=0.1, ge=0, description="nats of dependence that may be lost")

    @override
    def take(self, view: Candidates) -> Tensor:
        entropy = view.entropy
        holds = entropy.cumsum(0) - entropy.cummax(0).values <= self.gamma
        holds[0] = True
        return holds.cumprod(0).bool()
