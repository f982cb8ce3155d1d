"""The objective of the training loop: one micro-batch through student, teacher and divergence.

Only positions that bear loss reach a head. The teacher's words come from a cache, or from the
teacher itself, whose hidden states are kept for the micro-batch and whose logits exist for one
chunk of rows at a time. The loss is a sum over positions: the training loop divides by their number
in the whole optimizer step, on all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stillroom.distill.divergence import Where
from stillroom.distill.encode import Batch
from stillroom.distill.feature_set import FeatureSet
from stillroom.distill.head import CHUNK_ROWS, Head, chunked_loss
from stillroom.distill.method import Objective
from stillroom.distill.observing import Observed, Wanted, observe
from stillroom.distill.rollout_batch import Drawn
from stillroom.distill.targets import Dense, Sampled, Target, TopKTail
from stillroom.errors import RecipeError
from stillroom.train.loop import Loss
from stillroom.train.precision import product_dtype

__all__ = ["DistillObjective", "TeacherStates", "no_rollouts", "position_loss", "slice_target"]

_NOTHING = Wanted()


@dataclass(slots=True)
class TeacherStates:
    """A target that is the teacher's hidden states, (N, H): dense logits, a chunk at a time.

    Args:
        hidden: At the positions that bear loss; no gradient flows.
        head: The teacher's head, cut to the vocabulary that both share.
        operand: The head's weight in the type of the product, if it is kept between calls.
    """

    hidden: Tensor
    head: Head
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


def position_loss(
    objective: Objective,
    hidden: Tensor,
    head: Head,
    target: Target | TeacherStates | None,
    labels: Tensor,
    *,
    rollout: Tensor | None = None,
    drawn: Drawn | None = None,
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
            None if target is None else _slice(target, start, stop),
            labels[start:stop],
            rollout=None if rollout is None else rollout[start:stop],
            drawn=None if drawn is None else drawn.rows(start, stop),
            where=lambda row: (where or _number)(start + row),
        )
        if weights is not None:
            share = weights[start:stop].to(loss.dtype)
            loss, gradient = loss * share, gradient.mul_(share.unsqueeze(-1))
        return loss, gradient, parts

    return chunked_loss(
        hidden,
        head,
        score,
        prepare=states.prepare if states else None,
        tiles=True,
        chunk_rows=chunk_rows,
        dtype=dtype,
    )


class DistillObjective:
    """Callable that ``train`` takes: the summed loss of one micro-batch."""

    def __init__(
        self,
        objective: Objective,
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
        self.dtype = product_dtype(precision)
        self.teacher, self.features = teacher, features
        self._teacher_head = Head.of(teacher, rows) if teacher is not None else None
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
            raise no_rollouts(self.objective)
        features = self.features
        wanted = features.student_wanted if features is not None else _NOTHING
        student = observe(model, batch.input_ids, wanted)
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
        self, model: nn.Module, batch: Batch, hidden: Tensor, teacher: Observed | None
    ) -> Loss:
        """Return the loss through the student's head."""

        def where(index: int) -> str:
            row, column = divmod(int(batch.flat[index]), batch.input_ids.shape[1])
            return f"record {batch.record_ids[row]}, position {column}"

        total, parts = position_loss(
            self.objective,
            _picked(hidden, batch.flat),  # (N, H)
            Head.of(model, self.rows),
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

    def _observe_teacher(self, batch: Batch) -> Observed | None:
        """Run the teacher where its states are needed; no gradient flows."""
        is_spared = batch.target is not None or not self.objective.asks_teacher
        if is_spared and self.features is None:
            return None
        if self.teacher is None:
            raise ValueError("a batch without a target needs the teacher, as features do")
        with torch.no_grad():
            wanted = self.features.teacher_wanted if self.features is not None else _NOTHING
            ids, _ = batch.heard or (batch.input_ids, batch.flat)
            return observe(self.teacher, ids, wanted)

    def _target(self, batch: Batch, teacher: Observed | None) -> Target | TeacherStates | None:
        if batch.target is not None or not self.objective.asks_teacher:
            return batch.target
        if teacher is None or self._teacher_head is None:
            raise ValueError("a batch without a target needs the teacher")
        _, flat = batch.heard or (batch.input_ids, batch.flat)
        return TeacherStates(_picked(teacher.last, flat), self._teacher_head, self._operand)


def _picked(hidden: Tensor, flat: Tensor) -> Tensor:
    """Return hidden states (B, T, H) at the positions that bear loss, (N, H)."""
    return hidden.reshape(-1, hidden.shape[-1])[flat]


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


def _slice(target: Target | TeacherStates, start: int, stop: int) -> Target:
    if isinstance(target, TeacherStates):
        return Dense(target.logits(start, stop))
    return slice_target(target, start, stop)


def _number(index: int) -> str:
    return f"position {index}"


def no_rollouts(objective: Objective) -> RecipeError:
    """Return the error for a method that learns from rollouts where there are none."""
    return RecipeError(
        f"'{objective.method_name()}' needs to know which positions the student wrote itself",
        code="distill.rollouts",
        where="method",
        expected="rollouts in the recipe",
        next="add 'rollouts: {name: on_policy, beside_records: true}' and 'targets: {mode: live}'",
    )
