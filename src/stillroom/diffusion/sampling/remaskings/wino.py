"""WINO: wide-in drafting, then remasking of tokens that the rest of the text does not support.

Source: Hong et al. 2025, arXiv:2507.18578 (WINO). Every unmasked token of the block gets an extra
mask token at the same position that attends to everything but that token; a token is verified by
its probability there. Drafting is up to the unmasking rule: use a low threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import Remasking

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import CommittedTokens

__all__ = ["Wino"]


class Wino(Remasking):
    """Remask tokens that are verified with less than ``threshold``."""

    paper: ClassVar[str] = "arXiv:2507.18578"
    needs: ClassVar[Literal["nothing", "written", "shadows"]] = "shadows"

    threshold: float = Field(
        default=0.9, gt=0, le=1, description="probability below which a token is remasked"
    )
    extra: int = Field(
        default=1, ge=0, le=64, description="maximum extra verifications per full block"
    )

    @property
    @override
    def extra_steps(self) -> int:
        return self.extra

    @override
    def review(self, look: CommittedTokens) -> tuple[Tensor, Tensor]:
        if look.logits is None:
            raise ValueError("verification needs logits")
        logprobs = look.logits.log_softmax(-1).gather(-1, look.tokens[:, None])[:, 0]
        return logprobs.exp().cpu() < self.threshold, look.tokens
