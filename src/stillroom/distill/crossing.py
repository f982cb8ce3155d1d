"""``Crossing``: what a loss between two vocabularies is given and must give back.

Teacher and student read the same text in different tokens; ``alignment`` says which runs of tokens
cover the same bytes. A crossing compares either chunks, by the log-probability that each side gives
to spelling one, or rows, by the two next-token distributions where both stand at the same byte. The
engine (``cross_loss``) does heads, gradients and sums; a crossing is a formula with its derivative.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.token_map import TokenMap

__all__ = ["CROSSINGS", "ChunkCrossing", "Crossing", "RowCrossing"]


class Crossing(Method):
    """A loss between teacher and student whose tokenizers differ, with a cross-entropy mix.

    The step's loss is ``kd_weight`` times the sum over chunks (or rows) plus ``ce_weight`` times
    the cross-entropy of the student's own tokens, both divided by one number: the student's
    positions that bear loss.
    """

    compares: ClassVar[Literal["chunks", "rows"]]

    kd_weight: float = Field(default=1.0, ge=0, description="weight of the loss to the teacher")
    ce_weight: float = Field(
        default=0.0, ge=0, description="weight of the cross-entropy with the student's own tokens"
    )
    least_coverage: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="least share of the records' student tokens that is compared with the teacher; "
        "below it nothing is trained",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that the student must be a checkpoint with a tokenizer of its own."""
        return {"student": "path/to/student"}


class ChunkCrossing(Crossing):
    """Compares how likely both sides find the bytes of each chunk; needs no teacher's vocabulary.

    The teacher's log-probabilities of its own tokens suffice, so that any server that returns them
    for a prompt can teach.
    """

    compares: ClassVar[Literal["chunks", "rows"]] = "chunks"

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return the loss of each chunk, its slope, and sums to be logged.

        Args:
            log_q: The student's log-probability of each chunk, (C,), at most 0.
            log_p: The teacher's, likewise.

        Returns:
            Loss (C,), its derivative by ``log_q`` (C,), and named sums over the chunks.
        """


class RowCrossing(Crossing):
    """Compares two next-token distributions over different vocabularies at the same byte."""

    compares: ClassVar[Literal["chunks", "rows"]] = "rows"
    needs_one_to_one: ClassVar[bool] = True

    def pairs_by_index(self) -> bool:
        """Whether rows are paired by their number in the record instead of by bytes."""
        return False

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        """Return the loss of each row and its gradient by the student's logits.

        Args:
            log_q: The student's log-probabilities, (n, V of the student); may be overwritten.
            log_p: The teacher's, (n, V of the teacher); may be overwritten.
            tokens: Which tokens of both have the same bytes.

        Returns:
            Loss (n,) and gradient (n, V of the student) by the logits whose softmax is q.
        """


CROSSINGS: Seam[Crossing] = Seam("stillroom.distill.crossings", Crossing)
