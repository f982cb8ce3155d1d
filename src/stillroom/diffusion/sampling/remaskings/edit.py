"""Token-to-token editing: replaces a token where the model is confident in another one.

Source: LLaDA2.1, arXiv:2602.08676 (token-to-token editing). Only for models trained for it: others
predict the input token at an unmasked position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import Remasking

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.sampling.sequence import CommittedTokens

__all__ = ["Edit"]


class Edit(Remasking):
    """Replace tokens by others whose probability is above ``threshold``."""

    paper: ClassVar[str] = "arXiv:2602.08676"
    needs: ClassVar[Literal["nothing", "written", "shadows"]] = "written"

    threshold: float = Field(
        default=0.5, ge=0, le=1, description="probability above which another token replaces one"
    )
    extra: int = Field(default=16, ge=0, le=64, description="maximum extra steps per full block")

    @property
    @override
    def extra_steps(self) -> int:
        return self.extra

    @override
    def review(self, look: CommittedTokens) -> tuple[Tensor, Tensor]:
        import torch

        if look.logits is None:
            raise ValueError("editing needs logits")
        best = look.logits.softmax(-1).max(-1)
        is_other = (best.indices != look.tokens) & (best.values > self.threshold)
        none = torch.zeros(len(look.places), dtype=torch.bool)
        return none, torch.where(is_other, best.indices, look.tokens)
