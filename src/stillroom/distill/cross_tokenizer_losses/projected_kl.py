"""Projected KL: forward KL over tokens common to both vocabularies, the rest in one bucket.

Source: projection between vocabularies as in X-Token, arXiv:2605.21699, with no learned projection
and no string rules: tokens are shared where their bytes are equal. Everything without a counterpart
is one bucket on each side, so that the loss is a KL between two distributions: never negative, 0
for the same model with the same tokenizer. Where all the student's tokens have a counterpart it has
no such bucket, and the teacher is taken on the condition that its token is shared. Rows are those
where both stand at the same byte and the text goes on with one token of each. The same bytes as a
token of a coarse vocabulary and of a fine one need not promise the same text to come: that bias is
the price, and why this is no substitute for ``chunk_likelihood``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.distill.interfaces import VocabularyLoss

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.cross_tokenizer.spans import TokenMap

__all__ = ["ProjectedKl"]

_LEAST_MASS = 1e-30


class ProjectedKl(VocabularyLoss):
    """``sum over groups of P (log P - log Q)``; the gradient of a token is ``q (1 - P / Q)``."""

    paper: ClassVar[str] = "arXiv:2605.21699"

    @override
    def compare(self, log_q: Tensor, log_p: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        import torch

        q = log_q.exp()
        ours = tokens.pool(q, of_teacher=False)  # (n, groups)
        theirs = tokens.pool(log_p.exp(), of_teacher=True)
        if bool((tokens.student > 0).all()):
            theirs = torch.nn.functional.pad(theirs[:, 1:], (1, 0))
            theirs = theirs / theirs.sum(-1, keepdim=True).clamp_min(_LEAST_MASS)
        gap = theirs.clamp_min(_LEAST_MASS).log() - ours.clamp_min(_LEAST_MASS).log()
        loss = (theirs * gap).sum(-1)
        ratio = theirs / ours.clamp_min(_LEAST_MASS)
        group = torch.from_numpy(tokens.student).to(q.device)
        # The softmax's constraint: sum over tokens of q times ratio is the mass of groups with q.
        mass = theirs.where(ours > 0, torch.zeros_like(theirs)).sum(-1, keepdim=True)
        return loss, q * (mass - ratio[:, group])
