"""Distillation loss of a micro-batch against one teacher or several.

Only positions that bear loss reach a head. The teacher's words come from a cache, or from the
teacher itself, whose hidden states are kept for the micro-batch and whose logits exist for one
chunk of rows at a time. The loss is a sum over positions: the training loop divides by their number
in the whole optimizer step, on all ranks.

The sum is exact for any divergence and any form of target, since each teacher's is taken by itself.
For forward KL it is, up to a number that no gradient sees, the divergence to the teachers' mixture:
``sum w KL(p_i || q) = W KL(mean || q) + sum w KL(p_i || mean)``, W the sum of weights and ``mean``
the weighted mean of probabilities. For reverse KL it is that to their weighted geometric mean. The
student's head and body are passed once, however many teachers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stillroom.distill.data.tokenized import Batch, SamplingInfo
from stillroom.distill.interfaces import DistillationObjective
from stillroom.distill.losses.divergence import Where, missing_rollouts_error
from stillroom.distill.losses.lm_head import CHUNK_ROWS, LMHead, compute_chunked_loss, get_body
from stillroom.distill.losses.targets import DenseTargets, Targets, slice_target
from stillroom.distill.trainers.features import (
    Activations,
    CaptureSpec,
    FeatureSet,
    capture_activations,
)
from stillroom.train.loop import Loss
from stillroom.train.precision import matmul_dtype

__all__ = [
    "DistillationLoss",
    "MultiTeacherBatch",
    "MultiTeacherLoss",
    "TeacherStates",
    "compute_position_loss",
]


_NO_CAPTURE = CaptureSpec()


@dataclass(slots=True)
class TeacherStates:
    """A target that is the teacher's hidden states, (N, H): dense logits, a chunk at a time.

    Args:
        hidden: At the positions that bear loss; no gradient flows.
        head: The teacher's head, cut to the vocabulary that both share.
        operand: The head's weight in the type of the product, if it is kept between calls.
    """

    hidden: Tensor
    head: LMHead
    operand: Tensor | None = None
    _chunk: Tensor | None = field(default=None, init=False, repr=False)
    _start: int = field(default=0, init=False, repr=False)

    def prepare(self, start: int, stop: int) -> None:
        """Compute the logits of a chunk of rows, in the space of the chunk before."""
        with torch.no_grad():
            if self.operand is None:
                self.operand = self.head.operand()
            full = torch.promote_types(self.operand.dtype, torch.float32)
            if self._chunk is None or len(self._chunk) < stop - start:
                self._chunk = torch.empty(
                    stop - start, self.head.rows, dtype=full, device=self.operand.device
                )
            rows, space = self.hidden[start:stop], self._chunk[: stop - start]
            self.head.project(rows, self.operand, space)
        self._start = start

    def logits(self, start: int, stop: int) -> Tensor:
        """Return rows of the chunk that was prepared; to be asked for once."""
        if self._chunk is None:
            raise ValueError("no chunk was prepared")
        with torch.no_grad():
            return self.head.shape_logits(self._chunk[start - self._start : stop - self._start])


def compute_position_loss(
    objective: DistillationObjective,
    hidden: Tensor,
    head: LMHead,
    target: Targets | TeacherStates | None,
    labels: Tensor,
    *,
    rollout: Tensor | None = None,
    drawn: SamplingInfo | None = None,
    weights: Tensor | None = None,
    where: Where | None = None,
    chunk_rows: int = CHUNK_ROWS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of N positions, summed, and its parts; differentiable by hidden and head.

    Args:
        objective: The divergence, with temperature and weights.
        hidden: The student's hidden states at the positions that bear loss, (N, H).
        head: The student's.
        target: What the teacher says there; None where the objective does not need it.
        labels: The records' own next tokens, (N,).
        rollout: (N,), True where the position stands in the student's own text.
        drawn: How the tokens of that text were drawn.
        weights: (N,), what each position's loss is multiplied by; its parts are logged as they are.
        where: Names a position in an error.
        chunk_rows: Rows whose logits exist at once.
        dtype: Type of the student's products; default that of its weight.

    Raises:
        DataError: If the teacher's numbers are not finite; the position is named.
        RecipeError: If the method cannot use this form of target.
        ShapeError: If the target does not fit the student.
    """
    states = target if isinstance(target, TeacherStates) else None

    def score(logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        loss, gradient, parts = objective.score(
            logits,
            None if target is None else _slice_rows(target, start, stop),
            labels[start:stop],
            rollout=None if rollout is None else rollout[start:stop],
            drawn=None if drawn is None else drawn.rows(start, stop),
            where=lambda row: (where or _name_position)(start + row),
        )
        if weights is not None:
            share = weights[start:stop].to(loss.dtype)
            loss, gradient = loss * share, gradient.mul_(share.unsqueeze(-1))
        return loss, gradient, parts

    return compute_chunked_loss(
        hidden,
        head,
        score,
        prepare=states.prepare if states else None,
        tiles=True,
        chunk_rows=chunk_rows,
        dtype=dtype,
    )


class DistillationLoss:
    """Callable that ``train`` takes: the summed loss of one micro-batch."""

    def __init__(
        self,
        objective: DistillationObjective,
        *,
        rows: int,
        precision: str = "float32",
        teacher: nn.Module | None = None,
        features: FeatureSet | None = None,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        """Set up.

        Args:
            objective: The divergence.
            rows: Tokens of the common vocabulary; rows of the heads past it take no part.
            precision: ``float32`` or ``bfloat16``, of the heads' products.
            teacher: In evaluation mode; needed for batches without a target, and for features.
            features: Losses beside the one on logits; None adds none.
            chunk_rows: Rows whose logits exist at once.
        """
        self.objective, self.rows, self.chunk_rows = objective, rows, chunk_rows
        self.dtype = matmul_dtype(precision)
        self.teacher, self.features = teacher, features
        self._teacher_head = LMHead.of(teacher, rows) if teacher is not None else None
        if self._teacher_head is not None:
            self._operand = self._teacher_head.operand(self.dtype)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions.

        Raises:
            DataError: If the teacher's numbers are not finite; record and position are named.
            RecipeError: If the method needs the student's own text and the batch has none marked.
        """
        rollout = batch.rollout
        if self.objective.needs_rollouts and rollout is None:
            raise missing_rollouts_error(self.objective)
        features = self.features
        wanted = features.student_wanted if features is not None else _NO_CAPTURE
        student = capture_activations(model, batch.input_ids, wanted)
        teacher = self._observe_teacher(batch)
        if self.objective.kd_weight or self.objective.ce_weight or features is None:
            loss = self._on_logits(model, batch, student.last, teacher)
        else:  # nothing of the logits counts: no head is needed
            loss = Loss(student.last.new_zeros(()))
        parts = dict(loss.parts)
        if rollout is not None:
            parts["student_text"] = float(rollout.sum())
        if features is None or teacher is None:
            return Loss(loss.total, parts)
        beside, more = features(student, teacher, batch)
        return Loss(loss.total + beside, {**parts, **more})

    def _on_logits(
        self, model: nn.Module, batch: Batch, hidden: Tensor, teacher: Activations | None
    ) -> Loss:
        """Return the loss through the student's head."""

        def where(index: int) -> str:
            row, column = divmod(int(batch.flat[index]), batch.input_ids.shape[1])
            return f"record {batch.record_ids[row]}, position {column}"

        total, parts = compute_position_loss(
            self.objective,
            _gather_positions(hidden, batch.flat),  # (N, H)
            LMHead.of(model, self.rows),
            self._target(batch, teacher),
            batch.labels,
            rollout=batch.rollout,
            drawn=batch.drawn,
            weights=batch.weights,
            where=where,
            chunk_rows=self.chunk_rows,
            dtype=self.dtype,
        )
        return Loss(total, parts)

    def _observe_teacher(self, batch: Batch) -> Activations | None:
        """Run the teacher where its states are needed; no gradient flows."""
        is_spared = batch.target is not None or not self.objective.asks_teacher
        if is_spared and self.features is None:
            return None
        if self.teacher is None:
            raise ValueError("a batch without a target needs the teacher, as features do")
        with torch.no_grad():
            wanted = self.features.teacher_wanted if self.features is not None else _NO_CAPTURE
            ids, _ = batch.heard or (batch.input_ids, batch.flat)
            return capture_activations(self.teacher, ids, wanted)

    def _target(self, batch: Batch, teacher: Activations | None) -> Targets | TeacherStates | None:
        if batch.target is not None or not self.objective.asks_teacher:
            return batch.target
        if teacher is None or self._teacher_head is None:
            raise ValueError("a batch without a target needs the teacher")
        _, flat = batch.heard or (batch.input_ids, batch.flat)
        return TeacherStates(
            _gather_positions(teacher.last, flat), self._teacher_head, self._operand
        )


def _gather_positions(hidden: Tensor, flat: Tensor) -> Tensor:
    """Return hidden states (B, T, H) at the positions that bear loss, (N, H)."""
    return hidden.reshape(-1, hidden.shape[-1])[flat]


def _slice_rows(target: Targets | TeacherStates, start: int, stop: int) -> Targets:
    if isinstance(target, TeacherStates):
        return DenseTargets(target.logits(start, stop))
    return slice_target(target, start, stop)


def _name_position(index: int) -> str:
    return f"position {index}"


@dataclass(frozen=True, slots=True)
class MultiTeacherBatch:
    """A batch whose positions several teachers speak of.

    Args:
        batch: Without a target.
        targets: One a teacher, over all positions of the batch.
    """

    batch: Batch
    targets: tuple[Targets, ...]

    @property
    def valid(self) -> int:
        """Number of positions that bear loss."""
        return self.batch.valid

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return self.batch.tokens

    @property
    def record_ids(self) -> tuple[str, ...]:
        """The records inside."""
        return self.batch.record_ids


class MultiTeacherLoss:
    """Callable that ``train`` takes: ``sum w_i D(p_i, q)``, and the cross-entropy once."""

    def __init__(
        self,
        objective: DistillationObjective,
        weights: Sequence[float],
        *,
        rows: int,
        precision: str = "float32",
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        """Set up.

        Args:
            objective: The divergence, with temperature and weights.
            weights: One a teacher, in the order of a batch's targets.
            rows: Tokens of the common vocabulary.
            precision: ``float32`` or ``bfloat16``, of the head's products.
            chunk_rows: Rows whose logits exist at once.
        """
        self.weights, self.rows, self.chunk_rows = tuple(weights), rows, chunk_rows
        self.dtype = matmul_dtype(precision)
        first, *others = weights
        # The cross-entropy belongs to the first alone, and its weight must not be multiplied.
        self._parts = [
            objective.model_copy(update={"ce_weight": objective.ce_weight / first}),
            *(objective.model_copy(update={"ce_weight": 0.0}) for _ in others),
        ]

    def __call__(self, model: nn.Module, batch: MultiTeacherBatch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        inner = batch.batch
        hidden = get_body(model)(input_ids=inner.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[inner.flat]  # (N, H)

        def score(
            logits: Tensor, start: int, stop: int
        ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
            return self._score(logits, batch, start, stop)

        total, parts = compute_chunked_loss(
            picked,
            LMHead.of(model, self.rows),
            score,
            tiles=True,
            chunk_rows=self.chunk_rows,
            dtype=self.dtype,
        )
        return Loss(total, parts)

    def _score(
        self, logits: Tensor, batch: MultiTeacherBatch, start: int, stop: int
    ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        labels = batch.batch.labels[start:stop]
        loss = logits.new_zeros(stop - start)
        gradient = torch.zeros_like(logits)
        sums: dict[str, float] = {}
        for at, (part, weight) in enumerate(zip(self._parts, self.weights, strict=True)):
            own, slope, parts = part.score(
                logits,
                slice_target(batch.targets[at], start, stop),
                labels,
                where=lambda row: self._where(batch, start + row),
            )
            loss = loss + weight * own
            gradient.add_(slope, alpha=weight)
            sums[f"divergence_{at}"] = parts["divergence"]
            if "cross_entropy" in parts:
                sums["cross_entropy"] = parts["cross_entropy"]
        sums["divergence"] = sum(
            weight * sums[f"divergence_{at}"] for at, weight in enumerate(self.weights)
        )
        shares = batch.batch.weights
        if shares is not None:
            share = shares[start:stop].to(loss.dtype)
            loss, gradient = loss * share, gradient.mul_(share.unsqueeze(-1))
        return loss, gradient, sums

    def _where(self, batch: MultiTeacherBatch, index: int) -> str:
        inner = batch.batch
        row, column = divmod(int(inner.flat[index]), inner.input_ids.shape[1])
        return f"record {inner.record_ids[row]}, position {column}"
