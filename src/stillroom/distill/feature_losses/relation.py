"""Relation transfer (MiniLMv2): query, key and value relations of paired layers.

Source: Wang et al. 2020 (MiniLMv2), arXiv:2012.15828, equations 4 and 5: the vectors of all heads
are concatenated and split again into relation heads, each head's ``softmax(A A^T / sqrt(d))`` is a
relation, and KL(teacher || student) is taken row by row; numbers of heads may differ. Differs from
the paper: relations are causal. Queries, keys and values are the outputs of the projections, before
rotary embeddings and norms. With grouped heads, keys and values are narrower than queries and are
split into the same number of relation heads. By default the last layers are compared; for a large
teacher the paper recommends a layer above the middle: layers [[12, 21]].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.distill.interfaces import RelationLoss
from stillroom.distill.types import AttentionHeads, LayerPairing
from stillroom.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Relation"]

_NARROWEST = 16  # minimum width of a relation head; the paper's: 48 heads of 768, 64 of 1024


class Relation(RelationLoss):
    """Sum of the KLs of query, key and value relations, each averaged over relation heads."""

    paper: ClassVar[str] = "arXiv:2012.15828"
    reads: ClassVar[Literal["states", "attention", "projections"]] = "projections"

    layers: LayerPairing = Field(
        default="last",
        description="uniform: every student layer with the teacher layer at the same relative "
        "depth; last: the last layers; or pairs [student, teacher], layers counted from 1",
    )
    relation_heads: int | None = Field(
        default=None,
        ge=1,
        description="number of relation heads; null uses the most that leave at least 16 numbers "
        "in each",
    )
    query_weight: float = Field(default=1.0, ge=0, description="weight of the query relation")
    key_weight: float = Field(default=1.0, ge=0, description="weight of the key relation")
    value_weight: float = Field(default=1.0, ge=0, description="weight of the value relation")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not (self.query_weight or self.key_weight or self.value_weight):
            raise ValueError("the weights of all relations are 0: leave the loss out")
        return self

    @override
    def check(self, student: AttentionHeads, teacher: AttentionHeads) -> None:
        widths = _widths(student, teacher)
        heads = self._count(widths)
        if any(width % heads for width in widths):
            raise ShapeError(
                f"vectors of {', '.join(map(str, widths))} numbers cannot be split into {heads} "
                "heads",
                code="distill.feature-shape",
                where="features, relation.relation_heads",
                expected="a divisor of every width",
                next="remove relation_heads",
            )

    @override
    def compare(
        self, student: AttentionHeads, teacher: AttentionHeads, rows: Tensor, visible: Tensor
    ) -> Tensor:
        from stillroom.distill.losses.divergence import compute_relation_kl, compute_relation_scores

        heads = self._count(_widths(student, teacher))
        total = rows.new_zeros(len(rows), dtype=student.queries.dtype)
        for weight, student_vectors, teacher_vectors in (
            (self.query_weight, student.queries, teacher.queries),
            (self.key_weight, student.keys, teacher.keys),
            (self.value_weight, student.values, teacher.values),
        ):
            if weight:
                scores = (
                    compute_relation_scores(student_vectors, rows, heads),
                    compute_relation_scores(teacher_vectors, rows, heads),
                )
                total = total + weight * compute_relation_kl(*scores, visible).mean(0)
        return total

    def _count(self, widths: list[int]) -> int:
        if self.relation_heads is not None:
            return self.relation_heads
        most = max(min(widths) // _NARROWEST, 1)
        return next(
            heads for heads in range(most, 0, -1) if not any(width % heads for width in widths)
        )


def _widths(*sides: AttentionHeads) -> list[int]:
    return [
        part.shape[0] * part.shape[2]
        for side in sides
        for part in (side.queries, side.keys, side.values)
    ]
