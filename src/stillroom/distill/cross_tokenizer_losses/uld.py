"""Universal logit distillation: L1 distance of sorted probabilities, without token alignment.

Source: Boizard et al. 2024, arXiv:2402.12030, section 3: the Wasserstein-1 distance of two
distributions whose tokens are all equally far apart, which is the L1 distance of the sorted
probabilities, the shorter vocabulary filled up with zeros. Only the shape of a distribution is
learned, never which token is likely: use it with ``ce_weight``. Differs from the paper: rows are
paired where both stand at the same byte, not by their number in the sequence (``pair_by: index`` is
the paper's), and ``top`` sorts only the likeliest, the mass of the others compared as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import VocabularyLoss

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.cross_tokenizer.spans import TokenMap

__all__ = ["Uld"]


class Uld(VocabularyLoss):
    """``sum over ranks of |q - p|``, bounded by 2 at every row."""

    paper: ClassVar[str] = "arXiv:2402.12030"
    needs_one_to_one: ClassVar[bool] = False

    ce_weight: float = Field(
        default=1.0, ge=0, description="weight of the cross-entropy with the student's own tokens"
    )
    kd_weight: float = Field(default=1.5, ge=0, description="weight of the loss to the teacher")
    top: int | None = Field(
        default=None, ge=1, description="sort only so many of each side; null sorts all"
    )
    pair_by: Literal["byte", "index"] = Field(
        default="byte",
        description="which rows are compared: byte where both stand at the same byte of the text; "
        "index the first with the first, up to the shorter",
    )

    @override
    def pairs_by_index(self) -> bool:
        return self.pair_by == "index"

    @override
    def compare(self, log_q: Tensor, log_p: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        import torch

        q, p = log_q.exp(), log_p.exp()
        width = max(q.shape[1], p.shape[1]) if self.top is None else self.top
        ours, at = q.topk(min(width, q.shape[1]), -1)
        theirs = p.topk(min(width, p.shape[1]), -1).values
        width = max(ours.shape[1], theirs.shape[1])
        pad = torch.nn.functional.pad
        gap = pad(ours, (0, width - ours.shape[1])) - pad(theirs, (0, width - theirs.shape[1]))
        loss = gap.abs().sum(-1)
        by_q = torch.zeros_like(q)
        if self.top is not None:
            rest = (theirs.sum(-1) - ours.sum(-1)).unsqueeze(-1)  # (n, 1): of q, less that of p
            loss = loss + rest.squeeze(-1).abs()
            by_q = rest.sign().expand_as(q).clone()
        by_q.scatter_(-1, at, gap[:, : ours.shape[1]].sign())
        mean = (q * by_q).sum(-1, keepdim=True)
        return loss, q * (by_q - mean)  # through the softmax
