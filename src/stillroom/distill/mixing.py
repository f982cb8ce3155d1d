"""Several teachers' words on one position: the sum of weighted divergences to each.

The sum is exact for any divergence and any form of target, since each teacher's is taken by itself.
For forward KL it is, up to a number that no gradient sees, the divergence to the teachers' mixture:
``sum w KL(p_i || q) = W KL(mean || q) + sum w KL(p_i || mean)``, W the sum of weights and ``mean``
the weighted mean of probabilities. For reverse KL it is that to their weighted geometric mean. The
student's head and body are passed once, however many teachers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distill.encode import Batch
from stillroom.distill.engine import slice_target
from stillroom.distill.head import CHUNK_ROWS, Head, body_of, chunked_loss
from stillroom.distill.method import Objective
from stillroom.distill.targets import Target
from stillroom.train.loop import Loss
from stillroom.train.precision import product_dtype

__all__ = ["MixedBatch", "MixedObjective", "join_targets"]


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """A batch whose positions several teachers speak of.

    Args:
        batch: Without a target.
        targets: One a teacher, over all positions of the batch.
    """

    batch: Batch
    targets: tuple[Target, ...]

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


class MixedObjective:
    """Callable that ``train`` takes: ``sum w_i D(p_i, q)``, and the cross-entropy once."""

    def __init__(
        self,
        objective: Objective,
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
        self.dtype = product_dtype(precision)
        first, *others = weights
        # The cross-entropy belongs to the first alone, and its weight must not be multiplied.
        self._parts = [
            objective.model_copy(update={"ce_weight": objective.ce_weight / first}),
            *(objective.model_copy(update={"ce_weight": 0.0}) for _ in others),
        ]

    def __call__(self, model: nn.Module, batch: MixedBatch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        inner = batch.batch
        hidden = body_of(model)(input_ids=inner.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[inner.flat]  # (N, H)

        def score(
            logits: Tensor, start: int, stop: int
        ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
            return self._score(logits, batch, start, stop)

        total, parts = chunked_loss(
            picked,
            Head.of(model, self.rows),
            score,
            tiles=True,
            chunk_rows=self.chunk_rows,
            dtype=self.dtype,
        )
        return Loss(total, parts)

    def _score(
        self, logits: Tensor, batch: MixedBatch, start: int, stop: int
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

    def _where(self, batch: MixedBatch, index: int) -> str:
        inner = batch.batch
        row, column = divmod(int(inner.flat[index]), inner.input_ids.shape[1])
        return f"record {inner.record_ids[row]}, position {column}"


def join_targets(parts: Sequence[Target]) -> Target:
    """Return the rows of several targets of one form, one after another."""
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        raise TypeError("targets of different forms cannot be joined")
    joined: dict[str, Any] = {
        one.name: torch.cat([getattr(part, one.name) for part in parts])
        for one in fields(first)
        if isinstance(getattr(first, one.name), Tensor)
    }
    kept = {one.name: getattr(first, one.name) for one in fields(first)}
    return type(first)(**{**kept, **joined})
