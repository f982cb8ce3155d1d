"""How likely a teacher finds the tokens that stand in a lesson: all that some methods need of it.

``TeacherScorer`` is the narrow door: a model in this process fulfils it here, and so can a server
that returns the log-probabilities of a prompt's tokens. Knows no divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stillroom.distill.capture import teacher_hidden
from stillroom.distill.cross_loss import own_logprobs
from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.head import Head
from stillroom.errors import DataError
from stillroom.train.precision import body_precision, product_dtype

__all__ = ["ModelScorer", "TeacherScorer"]


@runtime_checkable
class TeacherScorer(Protocol):
    """Anything that tells a teacher's log-probabilities of given tokens."""

    def score_tokens(self, lessons: Sequence[Lesson]) -> list[npt.NDArray[np.float32]]:
        """Return, for each lesson, the log-probability of the next token at each position.

        Args:
            lessons: Texts in the teacher's own tokens, with the positions that are asked for.

        Returns:
            One array (N,) a lesson, in nats, at temperature 1, over the tokens that teacher and
            student share; what a lesson gets does not depend on the lessons beside it.

        Raises:
            DataError: If a number is not finite; the record is named.
        """


class ModelScorer:
    """A teacher in this process as a ``TeacherScorer``."""

    def __init__(self, teacher: nn.Module, *, rows: int = 0, precision: str = "float32") -> None:
        """Set up.

        Args:
            teacher: In evaluation mode.
            rows: Tokens that teacher and student share; 0 takes all of the teacher's.
            precision: ``float32`` or ``bfloat16``, of the matrix products.
        """
        self.teacher, self.precision = teacher, precision
        self._head = Head.of(teacher, rows)

    def score_tokens(self, lessons: Sequence[Lesson]) -> list[npt.NDArray[np.float32]]:
        """Return the teacher's log-probabilities; one lesson is run at a time."""
        return [self._score(lesson) for lesson in lessons]

    def _score(self, lesson: Lesson) -> npt.NDArray[np.float32]:
        device = self._head.weight.device
        batch = make_batch([lesson], None, device)
        with torch.no_grad(), body_precision(self.precision, device):
            hidden = teacher_hidden(self.teacher, batch.input_ids, batch.flat)
        found = own_logprobs(hidden, self._head, batch.labels, product_dtype(self.precision))
        scores: npt.NDArray[np.float32] = found.float().cpu().numpy()
        if not np.isfinite(scores).all():
            at = int(lesson.positions[int(np.flatnonzero(~np.isfinite(scores))[0])])
            raise DataError(
                f"the teacher's log-probabilities for record {lesson.record_id} are not finite",
                code="distill.teacher-not-finite",
                where=f"record {lesson.record_id}, position {at}",
                expected="finite numbers",
                next="set train.precision to float32, or check the teacher's weights",
            )
        return scores
