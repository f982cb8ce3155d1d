"""Attention transfer: attention scores or probabilities of paired layers, head by head.

Source: Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, equation 7: the mean square of the
difference of the scores before the softmax, over heads and keys; ``form: probabilities`` is
KL(teacher || student) of the distributions after it, as in MiniLM, arXiv:2002.10957, equation 3.
Needs as many heads in the student as in the teacher. Scores are made of queries and keys as
attention gets them: after rotary embeddings and norms, scaled, softly capped where the model does
so; keys of grouped heads count once for each query head. Only keys that both models may look at
count: none to come, none outside a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import RelationLoss
from stillroom.distill.types import AttentionHeads
from stillroom.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Attention"]


class Attention(RelationLoss):
    """Mean square of the difference of scores, or KL of probabilities, over all heads."""

    paper: ClassVar[str] = "arXiv:1909.10351"
    reads: ClassVar[Literal["states", "attention", "projections"]] = "attention"

    form: Literal["scores", "probabilities"] = Field(
        default="scores",
        description="scores: mean square before the softmax; probabilities: KL after it",
    )

    @override
    def check(self, student: AttentionHeads, teacher: AttentionHeads) -> None:
        own, taught = len(student.queries), len(teacher.queries)
        if own != taught:
            raise ShapeError(
                f"the student has {own} attention heads a layer, the teacher {taught}",
                code="distill.feature-shape",
                where="features, attention",
                expected="as many heads in both",
                next="use the feature relation, which needs no equal number of heads",
            )

    @override
    def compare(
        self, student: AttentionHeads, teacher: AttentionHeads, rows: Tensor, visible: Tensor
    ) -> Tensor:
        from stillroom.distill.losses.divergence import compute_relation_kl

        own, taught = _scores(student, rows), _scores(teacher, rows)  # (H, n, T)
        if self.form == "probabilities":
            return compute_relation_kl(own, taught, visible).mean(0)
        squares = (own - taught).square().masked_fill(~visible, 0.0)
        return squares.sum(-1).mean(0) / visible.sum(-1)


def _scores(heads: AttentionHeads, rows: Tensor) -> Tensor:
    groups = len(heads.queries) // len(heads.keys)
    keys = heads.keys.repeat_interleave(groups, 0)
    scores = heads.scale * heads.queries[:, rows] @ keys.transpose(1, 2)
    return (scores / heads.cap).tanh() * heads.cap if heads.cap else scores
