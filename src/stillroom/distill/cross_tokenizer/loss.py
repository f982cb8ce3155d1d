"""Training loss between a teacher and a student with different tokenizers.

A chunk's log-probability is the sum of its tokens' (the chain rule), so that its slope by each
token's log-probability is one number: the student's head is passed once for the numbers and once
for the gradient, ``chunk_rows`` positions at a time, and no (N, V) tensor exists on either side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stillroom.distill.cross_tokenizer.data import AlignedBatch, AlignedRecord, make_aligned_batch
from stillroom.distill.cross_tokenizer.spans import TokenMap
from stillroom.distill.interfaces import ChunkLoss, CrossTokenizerLoss, VocabularyLoss
from stillroom.distill.losses.lm_head import (
    CHUNK_ROWS,
    LMHead,
    compute_chunked_loss,
    compute_teacher_hidden,
    compute_token_logprobs,
    get_body,
)
from stillroom.errors import DataError, ShapeError
from stillroom.train.loop import Loss
from stillroom.train.precision import matmul_dtype

__all__ = [
    "AlignedBatchLoss",
    "score_aligned_record",
]


class AlignedBatchLoss:
    """Callable that ``train`` takes: the summed loss of one micro-batch of ``AlignedBatch``."""

    def __init__(
        self,
        crossing: CrossTokenizerLoss,
        *,
        tokens: TokenMap,
        precision: str = "float32",
        teacher: nn.Module | None = None,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        """Set up.

        Args:
            crossing: The loss.
            tokens: The tokens of both sides (``map_tokens``).
            precision: ``float32`` or ``bfloat16``, of the heads' products.
            teacher: In evaluation mode; not needed where batches bring ``teacher_logprobs``.
            chunk_rows: Rows whose logits exist at once.
        """
        self.crossing, self.chunk_rows = crossing, chunk_rows
        self.dtype = matmul_dtype(precision)
        self.teacher = teacher
        self._tokens = tokens
        self._teacher_head = LMHead.of(teacher) if teacher is not None else None

    def __call__(self, model: nn.Module, batch: AlignedBatch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        head = LMHead.of(model)
        hidden = get_body(model)(input_ids=batch.student_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]  # (N, H)
        score: _ChunkScorer | _RowScorer
        if isinstance(self.crossing, ChunkLoss):
            score = self._score_chunks(self.crossing, picked, head, batch)
        elif isinstance(self.crossing, VocabularyLoss):
            score = self._score_rows(self.crossing, head, batch)
        else:
            raise TypeError(f"{type(self.crossing).__name__} compares neither chunks nor rows")
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
        self, crossing: ChunkLoss, hidden: Tensor, head: LMHead, batch: AlignedBatch
    ) -> _ChunkScorer:
        inside = batch.chunk_of >= 0
        chosen = batch.chunk_of[inside]
        with torch.no_grad():
            student = compute_token_logprobs(
                hidden[inside], head, batch.labels[inside], self.dtype, self.chunk_rows
            )
            log_q = student.new_zeros(batch.chunks).index_add_(0, chosen, student)
            log_p = log_q.new_zeros(batch.chunks).index_add_(
                0, batch.teacher_chunk_of, self._taught(batch).to(log_q.dtype)
            )
            loss, slope, parts = crossing.compare(log_q, log_p)
        slopes = slope.new_zeros(batch.valid)
        slopes[inside] = slope[chosen]
        sums = {"divergence": float(loss.double().sum()), "chunks": float(batch.chunks), **parts}
        return _ChunkScorer(crossing, batch, loss, slopes, sums)

    def _taught(self, batch: AlignedBatch) -> Tensor:
        """Return the teacher's log-probabilities of its own tokens, (M,)."""
        known = batch.teacher_logprobs
        if known is not None:
            if known.shape != batch.teacher_labels.shape:
                raise _shape_error(tuple(known.shape), tuple(batch.teacher_labels.shape))
            _check_finite(known, batch)
            return known
        hidden, head = self._teach(batch)
        found = compute_token_logprobs(
            hidden, head, batch.teacher_labels, self.dtype, self.chunk_rows
        )
        _check_finite(found, batch)
        return found

    def _teach(self, batch: AlignedBatch) -> tuple[Tensor, LMHead]:
        if self.teacher is None or self._teacher_head is None:
            raise ValueError("a batch without teacher_logprobs needs the teacher")
        return compute_teacher_hidden(self.teacher, batch.teacher_ids, batch.teacher_flat), (
            self._teacher_head
        )

    def _score_rows(
        self, crossing: VocabularyLoss, head: LMHead, batch: AlignedBatch
    ) -> _RowScorer:
        hidden, teacher_head = self._teach(batch)
        if batch.rows.shape != batch.teacher_flat.shape:
            raise _shape_error(tuple(batch.teacher_flat.shape), tuple(batch.rows.shape))
        tokens = self._tokens.cut(teacher_head.rows, head.rows)
        return _RowScorer(crossing, batch, hidden, teacher_head, tokens, self.dtype)


def score_aligned_record(
    teacher: nn.Module, lesson: AlignedRecord, dtype: torch.dtype | None = None
) -> npt.NDArray[np.float32]:
    """Return the teacher's log-probability of its own token at each of its positions, (M,).

    This is all that a crossing of chunks needs of the teacher: kept once (``lesson.key`` names what
    it follows from), ``make_aligned_batch`` takes it instead of a teacher. No gradient flows.

    Raises:
        DataError: If the teacher gives a number that is not finite.
    """
    batch = make_aligned_batch([lesson])
    device = next(teacher.parameters()).device
    ids, flat, labels = (
        part.to(device) for part in (batch.teacher_ids, batch.teacher_flat, batch.teacher_labels)
    )
    hidden = compute_teacher_hidden(teacher, ids, flat)
    found = compute_token_logprobs(hidden, LMHead.of(teacher), labels, dtype).cpu().float()
    _check_finite(found, batch)
    kept: npt.NDArray[np.float32] = found.numpy()
    return kept


class _ChunkScorer:
    """Scores rows of student logits by slopes that are known already."""

    def __init__(
        self,
        crossing: ChunkLoss,
        batch: AlignedBatch,
        loss: Tensor,
        slopes: Tensor,
        parts: Mapping[str, float],
    ) -> None:
        self.crossing, self.labels, self.slopes, self.parts = (
            crossing,
            batch.labels,
            slopes,
            dict(parts),
        )
        self.ce_weights = _weigh_cross_entropy(crossing, batch)
        self._unsaid = loss.double().sum() * crossing.kd_weight

    prepare = None

    def __call__(
        self, logits: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        labels = self.labels[start:stop].unsqueeze(-1)
        log_q = torch.log_softmax(logits, -1)
        nats = -log_q.gather(-1, labels).squeeze(-1)
        ce_weight = self.ce_weights[start:stop]
        weight = self.crossing.kd_weight * self.slopes[start:stop] - ce_weight.to(nats.dtype)
        # d log q(label) / d logits = onehot - q
        gradient = log_q.exp_().mul_(-weight.unsqueeze(-1))
        gradient.scatter_add_(-1, labels, weight.unsqueeze(-1).to(gradient.dtype))
        loss = nats.double() * ce_weight
        loss[0] += self._unsaid  # the chunks' whole loss, said once
        self._unsaid = self._unsaid * 0
        return loss, gradient, {"cross_entropy": float(nats.double().sum())}


class _RowScorer:
    """Scores rows of student logits against the teacher's at the same byte."""

    def __init__(
        self,
        crossing: VocabularyLoss,
        batch: AlignedBatch,
        hidden: Tensor,
        head: LMHead,
        tokens: TokenMap,
        dtype: torch.dtype | None,
    ) -> None:
        self.crossing, self.batch, self.hidden, self.head = crossing, batch, hidden, head
        self.tokens, self.operand = tokens, head.operand(dtype)
        self.ce_weights = _weigh_cross_entropy(crossing, batch)
        self.rows = batch.rows.cpu().numpy()
        self.parts = {"rows": float(len(self.rows))}
        self._log_p, self._first = hidden.new_zeros(0, 0), 0

    def prepare(self, start: int, stop: int) -> None:
        """Ask the teacher for the rows of a chunk at once."""
        first, last = self._range(start, stop)
        with torch.no_grad():
            raw = self.head.project(self.hidden[first:last], self.operand)
            self._log_p = torch.log_softmax(self.head.shape_logits(raw), -1)
        _check_finite(self._log_p[:, :1].squeeze(-1), self.batch, first)
        self._first = first

    def __call__(
        self, logits: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        crossing, labels = self.crossing, self.batch.labels[start:stop].unsqueeze(-1)
        log_q = torch.log_softmax(logits, -1)
        nats = -log_q.gather(-1, labels).squeeze(-1)
        first, last = self._range(start, stop)
        at = self.batch.rows[first:last] - start
        taught = self._log_p[first - self._first : last - self._first].to(log_q.dtype)
        compared, by_row = crossing.compare(log_q[at], taught, self.tokens)
        ce_weight = self.ce_weights[start:stop].to(nats.dtype)
        gradient = log_q.exp_().mul_(ce_weight.unsqueeze(-1))
        gradient.scatter_add_(-1, labels, -ce_weight.unsqueeze(-1))
        gradient.index_add_(0, at, by_row.to(gradient.dtype), alpha=crossing.kd_weight)
        loss = ce_weight * nats
        loss = loss.index_add(0, at, compared.to(loss.dtype), alpha=crossing.kd_weight)
        sums = {
            "divergence": float(compared.double().sum()),
            "cross_entropy": float(nats.double().sum()),
        }
        return loss, gradient, sums

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        """Return which of the compared rows lie among the positions from start to stop."""
        first, last = np.searchsorted(self.rows, (start, stop))
        return int(first), int(last)


def _weigh_cross_entropy(crossing: CrossTokenizerLoss, batch: AlignedBatch) -> Tensor:
    """Return what each position's cross-entropy counts, (N,): nothing in the student's own text."""
    whole = torch.full(batch.own.shape, crossing.ce_weight, dtype=torch.float64)
    return whole.to(batch.own.device).masked_fill(batch.own, 0.0)


def _check_finite(logprobs: Tensor, batch: AlignedBatch, first: int = 0) -> None:
    """Refuse teacher's log-probabilities that are not numbers, naming record and position."""
    bad = torch.isnan(logprobs) | (logprobs == float("inf"))
    if not bool(bad.any()):
        return
    place = int(batch.teacher_flat[first + int(bad.nonzero()[0, 0])])
    row, column = divmod(place, batch.teacher_ids.shape[1])
    raise DataError(
        "the teacher gives a number that is not finite",
        code="distill.teacher-not-finite",
        where=f"record {batch.record_ids[row]}, teacher's position {column}",
        expected="log-probabilities",
        next="load the teacher in float32, or leave the record out",
    )


def _shape_error(found: tuple[int, ...], wanted: tuple[int, ...]) -> ShapeError:
    return ShapeError(
        f"the teacher gives {found} numbers where the batch asks for {wanted}",
        code="distill.shape",
        expected="one number for each of the teacher's positions, in their order",
        next="make the batch again with make_cross_batch",
    )
