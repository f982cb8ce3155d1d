"""The objective of the training loop: one micro-batch through student, teacher and divergence.

Only positions that bear loss reach a head. The teacher's words come from a cache, or from the
teacher itself, whose hidden states are kept for the micro-batch and whose logits exist for one
chunk of rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stillroom.distill.capture import teacher_hidden
from stillroom.distill.encode import Batch
from stillroom.distill.head import CHUNK_ROWS, Head, body_of, chunked_loss
from stillroom.distill.method import Objective
from stillroom.distill.targets import Dense, Sampled, Target, TopKTail
from stillroom.train.loop import Loss
from stillroom.train.precision import product_dtype

__all__ = ["DistillObjective", "slice_target"]


class DistillObjective:
    """Callable that ``train`` takes: the summed loss of one micro-batch."""

    def __init__(
        self,
        objective: Objective,
        *,
        rows: int,
        precision: str = "float32",
        teacher: nn.Module | None = None,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        """Set up.

        Args:
            objective: The divergence.
            rows: Tokens of the common vocabulary; rows of the heads past it take no part.
            precision: ``float32`` or ``bfloat16``, of the heads' products.
            teacher: In evaluation mode; needed for batches without a target.
            chunk_rows: Rows whose logits exist at once.
        """
        self.objective, self.rows, self.chunk_rows = objective, rows, chunk_rows
        self.dtype = product_dtype(precision)
        self.teacher = teacher
        self._teacher_head = Head.of(teacher, rows) if teacher is not None else None
        if self._teacher_head is not None:
            self._operand = self._teacher_head.operand(self.dtype)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        hidden = body_of(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]  # (N, H)
        taught = None
        if batch.target is None and self.teacher is not None:
            taught = teacher_hidden(self.teacher, batch.input_ids, batch.flat)

        def score(
            logits: Tensor, start: int, stop: int
        ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
            target = self._target(batch, taught, start, stop)
            return self.objective.score(logits, target, batch.labels[start:stop])

        total, parts = chunked_loss(
            picked,
            Head.of(model, self.rows),
            score,
            chunk_rows=self.chunk_rows,
            dtype=self.dtype,
        )
        return Loss(total, parts)

    def _target(self, batch: Batch, taught: Tensor | None, start: int, stop: int) -> Target:
        if batch.target is not None:
            return slice_target(batch.target, start, stop)
        if taught is None or self._teacher_head is None:
            raise ValueError("a batch without a target needs the teacher")
        head = self._teacher_head
        with torch.no_grad():
            return Dense(head.shape_logits(head.project(taught[start:stop], self._operand)))


def slice_target(target: Target, start: int, stop: int) -> Target:
    """Return the rows ``start`` to ``stop`` of a target."""
    if isinstance(target, Dense):
        return Dense(target.logits[start:stop])
    if isinstance(target, TopKTail):
        return TopKTail(
            target.ids[start:stop],
            target.logprobs[start:stop],
            target.tail[start:stop],
            target.temperature,
        )
    return Sampled(
        target.ids[start:stop],
        target.weights[start:stop],
        target.logprobs[start:stop],
        target.temperature,
    )
