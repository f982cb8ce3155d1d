"""Universal logit distillation (ULD): L1 distance of sorted probabilities, without alignment.

Source: Boizard et al. 2024, arXiv:2402.12030, section 3: the Wasserstein-1 distance of two
distributions whose tokens are all equally far apart equals the L1 distance of the sorted
probabilities, the smaller vocabulary padded with zeros. It transfers only the shape of a
distribution, not which tokens are likely: combine it with ``ce_weight`` (``use_uld_loss`` of TRL's
GOLDTrainer). Differs from the paper: rows are paired at the same byte of the text, not by index
(``pair_by: index`` is the paper's), and ``top`` sorts only the most likely tokens and compares the
remaining mass as one.
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
    """``sum over ranks of |q - p|``, at most 2 per row."""

    paper: ClassVar[str] = "arXiv:2402.12030"
    needs_one_to_one: ClassVar[bool] = False

    ce_weight: float = Field(
        default=1.0, ge=0, description="weight of the cross-entropy with the student's labels"
    )
    kd_weight: float = Field(default=1.5, ge=0, description="weight of the distillation loss")
    top: int | None = Field(
        default=None, ge=1, description="number of tokens sorted per side; null sorts all"
    )
    pair_by: Literal["byte", "index"] = Field(
        default="byte",
        description="pairing of rows: byte pairs rows at the same byte of the text; index pairs "
        "rows by number, up to the shorter sequence",
    )

    @override
    def pairs_by_index(self) -> bool:
        return self.pair_by == "index"

    @override
    def compare(self, log_q: Tensor, log_p: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        import torch

        q, p = log_q.exp(), log_p.exp()
        width = max(q.shape[1], p.shape[1]) if self.top is None else self.top
        student, indices = q.topk(min(width, q.shape[1]), -1)
        teacher = p.topk(min(width, p.shape[1]), -1).values
        width = max(student.shape[1], teacher.shape[1])
        pad = torch.nn.functional.pad
        gap = pad(student, (0, width - student.shape[1])) - pad(
            teacher, (0, width - teacher.shape[1])
        )
        loss = gap.abs().sum(-1)
        slope = torch.zeros_like(q)
        if self.top is not None:
            tail = (teacher.sum(-1) - student.sum(-1)).unsqueeze(
                -1
            )  # (n, 1): tail of q less tail of p
            loss = loss + tail.squeeze(-1).abs()
            slope = tail.sign().expand_as(q).clone()
        slope.scatter_(-1, indices, gap[:, : student.shape[1]].sign())
        mean = (q * slope).sum(-1, keepdim=True)
        return loss, q * (slope - mean)  # through the softmax
