"""ReMDM: random remasking of decoded tokens, bounded by the noise schedule.

Source: Wang et al. 2025, arXiv:2503.00307 (ReMDM): sigma at most min(1, (1 - alpha_s) / alpha_t);
kinds cap, rescale and conf of section 4.1. Differs from the paper: the number of unmasked tokens is
up to the unmasking rule, which makes up for remasked ones; shares of conf have mean 1, so that it
is as strong as rescale, and sigma never exceeds its bound; the loop kind is not implemented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import Remasking

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import CommittedTokens

__all__ = ["Remdm"]


class Remdm(Remasking):
    """Remask each token with probability sigma; linear schedule over the block's steps."""

    paper: ClassVar[str] = "arXiv:2503.00307"
    needs_plan: ClassVar[bool] = True

    kind: Literal["cap", "rescale", "conf"] = Field(
        default="cap",
        description="cap: at most eta; rescale: eta times the upper bound; conf: rescale, "
        "weighted by low confidence",
    )
    eta: float = Field(default=0.05, gt=0, le=1, description="remasking strength")

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return an unmasking rule with a known number of steps."""
        return {"decode.commit": {"name": "quota"}}

    @override
    def review(self, look: CommittedTokens) -> tuple[Tensor, Tensor]:
        import torch

        before, after = look.step.number, look.step.number + 1
        if after >= look.steps or len(look.places) == 0:
            return torch.zeros(len(look.places), dtype=torch.bool), look.tokens
        alpha_t, alpha_s = before / look.steps, after / look.steps
        most = min(1.0, (1 - alpha_s) / alpha_t)
        sigma = torch.full((len(look.places),), most, dtype=torch.float64)
        sigma = sigma.clamp(max=self.eta) if self.kind == "cap" else sigma * self.eta
        if self.kind == "conf":
            shares = torch.softmax(-look.confidence, 0) * len(look.places)
            sigma = (sigma * shares).clamp(max=most)
        noise = torch.rand(len(look.places), generator=look.rng, dtype=torch.float64)
        return noise < sigma, look.tokens
