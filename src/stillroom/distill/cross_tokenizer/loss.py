"""Training loss between a teacher and a student with different tokenizers.

A chunk's log-probability is the sum over its tokens (chain rule), so its derivative by each token's
log-probability is a single number. The student's head is applied once for the values and once for
the gradient, ``chunk_rows`` positions at a time; no (N, V) tensor is formed on either side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.distill.cross_tokenizer.data import AlignedBatch
from stillroom.distill.cross_tokenizer.spans import TokenMap
from stillroom.distill.interfaces import ChunkLoss, CrossTokenizerLoss, VocabularyLoss
from stillroom.distill.losses.lm_head import (
    CHUNK_ROWS,
    LMHead,
    compute_chunked_loss,
    compute_hidden,
    compute_teacher_hidden,
    compute_token_logprobs,
)
from stillroom.errors import DataError, ShapeError
from stillroom.train.loop import Loss
from stillroom.train.precision import matmul_dtype

__all__ = [
    "AlignedBatchLoss",
]


class AlignedBatchLoss:
    """Loss function for ``train``: the summed loss of one ``AlignedBatch``."""

    def __init__(
        self,
        criterion: CrossTokenizerLoss,
        *,
        tokens: TokenMap,
        precision: str = "float32",
        teacher: nn.Module | None = None,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        """Initialize the loss.

        Args:
            criterion: Cross-tokenizer loss.
            tokens: Token map of both vocabularies (``map_tokens``).
            precision: Precision of the heads' products, ``float32`` or ``bfloat16``.
            teacher: Teacher in evaluation mode; not needed if batches have ``teacher_logprobs``.
            chunk_rows: Rows of logits computed at once.
        """
        self.criterion, self.chunk_rows = criterion, chunk_rows
        self.dtype = matmul_dtype(precision)
        self.teacher = teacher
        self._tokens = tokens
        self._teacher_head = LMHead.of(teacher) if teacher is not None else None

    def __call__(self, model: nn.Module, batch: AlignedBatch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        head = LMHead.of(model)
        picked = compute_hidden(model, batch.student_ids, batch.flat)
        score: _ChunkScorer | _RowScorer
        if isinstance(self.criterion, ChunkLoss):
            score = self._score_chunks(self.criterion, picked, head, batch)
        elif isinstance(self.criterion, VocabularyLoss):
            score = self._score_rows(self.criterion, head, batch)
        else:
            raise TypeError(f"{type(self.criterion).__name__} compares neither chunks nor rows")
        total, parts = compute_chunked_loss(
            picked,
            head,
            score,
            prepare=score.prepare,
            chunk_rows=self.chunk_rows,
            dtype=self.dtype,
        )
        return Loss(total, {**score.parts, **parts})

    def _score_chunks(
        self, criterion: ChunkLoss, hidden: Tensor, head: LMHead, batch: AlignedBatch
    ) -> _ChunkScorer:
        inside = batch.chunk_of >= 0
        chunks = batch.chunk_of[inside]
        with torch.no_grad():
            student = compute_token_logprobs(
                hidden[inside], head, batch.labels[inside], self.dtype, self.chunk_rows
            )
            log_q = student.new_zeros(batch.chunks).index_add_(0, chunks, student)
            log_p = log_q.new_zeros(batch.chunks).index_add_(
                0, batch.teacher_chunk_of, self._compute_teacher_logprobs(batch).to(log_q.dtype)
            )
            loss, slope, parts = criterion.compare(log_q, log_p)
        slopes = slope.new_zeros(batch.valid)
        slopes[inside] = slope[chunks]
        sums = {"divergence": float(loss.double().sum()), "chunks": float(batch.chunks), **parts}
        return _ChunkScorer(criterion, batch, loss, slopes, sums)

    def _compute_teacher_logprobs(self, batch: AlignedBatch) -> Tensor:
        """Return the teacher's log-probabilities of its labels, (M,)."""
        captured = batch.teacher_logprobs
        if captured is not None:
            if captured.shape != batch.teacher_labels.shape:
                raise _shape_error(tuple(captured.shape), tuple(batch.teacher_labels.shape))
            _check_finite(captured, batch)
            return captured
        hidden, head = self._compute_teacher_hidden(batch)
        logprobs = compute_token_logprobs(
            hidden, head, batch.teacher_labels, self.dtype, self.chunk_rows
        )
        _check_finite(logprobs, batch)
        return logprobs

    def _compute_teacher_hidden(self, batch: AlignedBatch) -> tuple[Tensor, LMHead]:
        if self.teacher is None or self._teacher_head is None:
            raise ValueError("a batch without teacher_logprobs needs the teacher")
        return compute_teacher_hidden(self.teacher, batch.teacher_ids, batch.teacher_flat), (
            self._teacher_head
        )

    def _score_rows(
        self, criterion: VocabularyLoss, head: LMHead, batch: AlignedBatch
    ) -> _RowScorer:
        hidden, teacher_head = self._compute_teacher_hidden(batch)
        if batch.rows.shape != batch.teacher_flat.shape:
            raise _shape_error(tuple(batch.teacher_flat.shape), tuple(batch.rows.shape))
        tokens = self._tokens.cut(teacher_head.rows, head.rows)
        return _RowScorer(criterion, batch, hidden, teacher_head, tokens, self.dtype)


class _ChunkScorer:
    """Scorer of rows of student logits with precomputed slopes."""

    def __init__(
        self,
        criterion: ChunkLoss,
        batch: AlignedBatch,
        loss: Tensor,
        slopes: Tensor,
        parts: Mapping[str, float],
    ) -> None:
        self.criterion = criterion
        self.labels = batch.labels
        self.slopes = slopes
        self.parts = dict(parts)
        self.ce_weights = _weigh_cross_entropy(criterion, batch)
        self._chunk_loss = loss.double().sum() * criterion.kd_weight

    prepare = None

    def __call__(
        self, logits: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        labels = self.labels[start:stop].unsqueeze(-1)
        log_q = torch.log_softmax(logits, -1)
        nats = -log_q.gather(-1, labels).squeeze(-1)
        ce_weight = self.ce_weights[start:stop]
        weight = self.criterion.kd_weight * self.slopes[start:stop] - ce_weight.to(nats.dtype)
        # d log q(label) / d logits = onehot - q
        gradient = log_q.exp_().mul_(-weight.unsqueeze(-1))
        gradient.scatter_add_(-1, labels, weight.unsqueeze(-1).to(gradient.dtype))
        loss = nats.double() * ce_weight
        loss[0] += self._chunk_loss  # add the total chunk loss once
        self._chunk_loss = self._chunk_loss * 0
        return loss, gradient, {"cross_entropy": float(nats.double().sum())}


class _RowScorer:
    """Scorer of rows of student logits against the teacher's rows at the same byte."""

    def __init__(
        self,
        criterion: VocabularyLoss,
        batch: AlignedBatch,
        hidden: Tensor,
        head: LMHead,
        tokens: TokenMap,
        dtype: torch.dtype | None,
    ) -> None:
        self.criterion, self.batch, self.hidden, self.head = criterion, batch, hidden, head
        self.tokens, self.operand = tokens, head.operand(dtype)
        self.ce_weights = _weigh_cross_entropy(criterion, batch)
        self.rows = batch.rows.cpu().numpy()
        self.parts = {"rows": float(len(self.rows))}
        self._log_p, self._first = hidden.new_zeros(0, 0), 0

    def prepare(self, start: int, stop: int) -> None:
        """Compute the teacher's log-probabilities of a block of rows."""
        first, last = self._range(start, stop)
        with torch.no_grad():
            raw = self.head.project(self.hidden[first:last], self.operand)
            self._log_p = torch.log_softmax(self.head.shape_logits(raw), -1)
        _check_finite(self._log_p[:, :1].squeeze(-1), self.batch, first)
        self._first = first

    def __call__(
        self, logits: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        criterion, labels = self.criterion, self.batch.labels[start:stop].unsqueeze(-1)
        log_q = torch.log_softmax(logits, -1)
        nats = -log_q.gather(-1, labels).squeeze(-1)
        first, last = self._range(start, stop)
        indices = self.batch.rows[first:last] - start
        log_p = self._log_p[first - self._first : last - self._first].to(log_q.dtype)
        row_loss, row_gradient = criterion.compare(log_q[indices], log_p, self.tokens)
        ce_weight = self.ce_weights[start:stop].to(nats.dtype)
        gradient = log_q.exp_().mul_(ce_weight.unsqueeze(-1))
        gradient.scatter_add_(-1, labels, -ce_weight.unsqueeze(-1))
        gradient.index_add_(0, indices, row_gradient.to(gradient.dtype), alpha=criterion.kd_weight)
        loss = ce_weight * nats
        loss = loss.index_add(0, indices, row_loss.to(loss.dtype), alpha=criterion.kd_weight)
        sums = {
            "divergence": float(row_loss.double().sum()),
            "cross_entropy": float(nats.double().sum()),
        }
        return loss, gradient, sums

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        """Return the interval of compared rows among the positions from start to stop."""
        first, last = np.searchsorted(self.rows, (start, stop))
        return int(first), int(last)


def _weigh_cross_entropy(criterion: CrossTokenizerLoss, batch: AlignedBatch) -> Tensor:
    """Return the cross-entropy weight of each position, (N,): 0 in text of the student's own."""
    weights = torch.full(batch.own.shape, criterion.ce_weight, dtype=torch.float64)
    return weights.to(batch.own.device).masked_fill(batch.own, 0.0)


def _check_finite(logprobs: Tensor, batch: AlignedBatch, first: int = 0) -> None:
    """Reject non-finite teacher log-probabilities, naming record and position."""
    bad = torch.isnan(logprobs) | (logprobs == float("inf"))
    if not bool(bad.any()):
        return
    index = int(batch.teacher_flat[first + int(bad.nonzero()[0, 0])])
    row, column = divmod(index, batch.teacher_ids.shape[1])
    raise DataError(
        "the teacher's log-probability is not finite",
        code="distill.teacher-not-finite",
        where=f"record {batch.record_ids[row]}, teacher's position {column}",
        expected="finite log-probabilities",
        next="load the teacher in float32, or remove the record",
    )


def _shape_error(actual: tuple[int, ...], expected: tuple[int, ...]) -> ShapeError:
    return ShapeError(
        f"the teacher returned {actual} values, and the batch expects {expected}",
        code="distill.shape",
        expected="one value per teacher position, in order",
        next="rebuild the batch with make_aligned_batch",
    )
