"""WINO: wide-in drafting, then remasking of tokens that the rest of the text does not support.

Source: Hong et al. 2025, arXiv:2507.18578 (WINO). Beside every written token of the block stands a
mask in the same position that sees everything but that token; its probability for the token is the
verdict. Drafting is the commit rule's part: use a low threshold.
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
    """Take back what is verified with less than ``threshold``."""

    paper: ClassVar[str] = "arXiv:2507.18578"
    needs: ClassVar[Literal["nothing", "written", "shadows"]] = "shadows"

    threshold: float = Field(
        default=0.9, ge=0, le=1, description="probability below which a token is taken back"
    )
    extra: int = Field(
        default=1, ge=0, le=64, description="times a full block is verified again at most"
    )

    @property
    @override
    def extra_steps(self) -> int:
        return self.extra

    @override
    def review(self, look: CommittedTokens) -> tuple[Tensor, Tensor]:
        if look.logits is None:
            raise ValueError("verification needs logits")
        own = look.logits.log_softmax(-1).gather(-1, look.tokens[:, None])[:, 0]
        return own.exp().cpu() < self.threshold, look.tokens
