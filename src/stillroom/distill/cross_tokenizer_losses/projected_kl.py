"""Projected KL: forward KL over tokens common to both vocabularies, the rest in one bucket.

Source: projection between vocabularies as in X-Token, arXiv:2605.21699, without a learned
projection or string rules: tokens are shared if their bytes are equal. All tokens without a
counterpart form one bucket on each side, so the loss is a KL between two distributions:
non-negative, and 0 for the same model with the same tokenizer. If every student token has a
counterpart, there is no such bucket, and the teacher is conditioned on shared tokens. Rows are
those where both models are at the same byte and the text continues with one token of each. Equal
bytes in a coarse and in a fine vocabulary do not imply the same continuation; this bias remains,
and makes the loss no substitute for ``chunk_likelihood``.
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
        student = tokens.pool(q, of_teacher=False)  # (n, groups)
        teacher = tokens.pool(log_p.exp(), of_teacher=True)
        if bool((tokens.student > 0).all()):
            teacher = torch.nn.functional.pad(teacher[:, 1:], (1, 0))
            teacher = teacher / teacher.sum(-1, keepdim=True).clamp_min(_LEAST_MASS)
        gap = teacher.clamp_min(_LEAST_MASS).log() - student.clamp_min(_LEAST_MASS).log()
        loss = (teacher * gap).sum(-1)
        ratio = teacher / student.clamp_min(_LEAST_MASS)
        group = torch.from_numpy(tokens.student).to(q.device)
        # Through the softmax: sum over tokens of q times ratio is the mass of groups with q > 0.
        mass = teacher.where(student > 0, torch.zeros_like(teacher)).sum(-1, keepdim=True)
        return loss, q * (mass - ratio[:, group])
