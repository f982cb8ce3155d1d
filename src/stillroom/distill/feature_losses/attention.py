"""Attention transfer: attention scores or probabilities of paired layers, head by head.

Source: Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, equation 7: mean squared difference of the
scores before the softmax, over heads and keys; ``form: probabilities`` is KL(teacher || student) of
the distributions after it, as in MiniLM, arXiv:2002.10957, equation 3. Requires equal numbers of
heads. Scores are computed as in the models' attention: after rotary embeddings and norms, scaled,
and soft-capped if the model does so; keys of grouped heads are repeated for each query head. Only
keys visible to both models count: none in the future, none outside a window.
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
    """Mean squared difference of scores, or KL of probabilities, over all heads."""

    paper: ClassVar[str] = "arXiv:1909.10351"
    reads: ClassVar[Literal["states", "attention", "projections"]] = "attention"

    form: Literal["scores", "probabilities"] = Field(
        default="scores",
        description="scores: mean squared difference before the softmax; probabilities: KL after",
    )

    @override
    def check(self, student: AttentionHeads, teacher: AttentionHeads) -> None:
        student_heads, teacher_heads = len(student.queries), len(teacher.queries)
        if student_heads != teacher_heads:
            raise ShapeError(
                f"the student has {student_heads} attention heads per layer, the teacher "
                f"{teacher_heads}",
                code="distill.feature-shape",
                where="features, attention",
                expected="equal numbers of heads",
                next="use the feature loss relation, which does not require them",
            )

    @override
    def compare(
        self, student: AttentionHeads, teacher: AttentionHeads, rows: Tensor, visible: Tensor
    ) -> Tensor:
        from stillroom.distill.losses.divergence import compute_relation_kl

        student_scores, teacher_scores = _scores(student, rows), _scores(teacher, rows)  # (H, n, T)
        if self.form == "probabilities":
            return compute_relation_kl(student_scores, teacher_scores, visible).mean(0)
        squares = (student_scores - teacher_scores).square().masked_fill(~visible, 0.0)
        return squares.sum(-1).mean(0) / visible.sum(-1)


def _scores(heads: AttentionHeads, rows: Tensor) -> Tensor:
    groups = len(heads.queries) // len(heads.keys)
    keys = heads.keys.repeat_interleave(groups, 0)
    scores = heads.scale * heads.queries[:, rows] @ keys.transpose(1, 2)
    return (scores / heads.cap).tanh() * heads.cap if heads.cap else scores
