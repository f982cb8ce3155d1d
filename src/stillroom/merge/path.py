"""The loss along the straight line between two models (linear mode connectivity).

Source: Frankle et al. 2019, arXiv:1912.05671; 11 points, as there most often. A barrier is how far
the worst point lies above the line between the losses of the ends: near zero, averages of the two
models can be expected to work. The models are interpolated in memory, in float32; nothing is
written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.errors import CheckpointError, DataError
from stillroom.merge.adapters import AdaptedCheckpoint

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.evaluate.metrics import Metric
    from stillroom.records import Record

__all__ = ["LossPath", "load_model", "trace_path"]

POINTS = 11


@dataclass(frozen=True, slots=True)
class LossPath:
    """Losses (nats a token) from the first model, share 0, to the second, share 1."""

    names: tuple[str, str]
    shares: tuple[float, ...]
    losses: tuple[Metric, ...]

    @property
    def barrier(self) -> float:
        """How far the worst point lies above the line between the ends; 0 if none does."""
        first, last = self.losses[0].value, self.losses[-1].value
        return max(
            loss.value - (1 - share) * first - share * last
            for share, loss in zip(self.shares, self.losses, strict=True)
        )

    @property
    def best(self) -> int:
        """The number of the point with the least loss."""
        return min(range(len(self.losses)), key=lambda at: self.losses[at].value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "parents": list(self.names),
            "barrier": self.barrier,
            "points": [
                {"share": share, **loss.to_json()}
                for share, loss in zip(self.shares, self.losses, strict=True)
            ],
        }

    def __str__(self) -> str:
        """Return the lines a user reads."""
        lines = [f"loss from {self.names[0]} to {self.names[1]}, barrier {self.barrier:.4f} nats"]
        lines += [
            f"  {share:>5.2f} {loss.value:>9.4f}  [{loss.low:.4f}, {loss.high:.4f}]"
            for share, loss in zip(self.shares, self.losses, strict=True)
        ]
        return "\n".join(lines)


def trace_path(
    names: tuple[str, str],
    ends: tuple[Checkpoint | AdaptedCheckpoint, Checkpoint | AdaptedCheckpoint],
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    points: int = POINTS,
    device: str = "auto",
    on_point: Callable[[], None] | None = None,
) -> LossPath:
    """Measure the loss at evenly spaced points between two models.

    Args:
        names: What the models are called.
        ends: The models; of one architecture and tokenizer. Two are held in memory, in float32.
        records: What the loss is measured on; neither model should have been trained on them.
        max_tokens: Tokens of a record that are read.
        points: How many, both ends counted.
        device: Where the models run.
        on_point: Called after each point.

    Raises:
        DataError: If no record has a token of an assistant.
        CheckpointError: If a model cannot be loaded.
    """
    import torch

    from stillroom.evaluate.loss import held_out_loss
    from stillroom.evaluate.metrics import bootstrap

    model, tokenizer = load_model(ends[0], device)
    other, _ = load_model(ends[1], device)
    pairs = [
        (parameter, parameter.detach().clone(), end.detach())
        for (_, parameter), (_, end) in zip(
            model.named_parameters(), other.named_parameters(), strict=True
        )
    ]
    shares = tuple(at / (points - 1) for at in range(points))
    losses = []
    for share in shares:
        with torch.no_grad():
            for parameter, start, end in pairs:
                parameter.copy_(torch.lerp(start, end, share))
        found = held_out_loss(model, tokenizer, records, max_tokens=max_tokens)
        counted = [(nats, tokens) for nats, tokens in found if tokens]
        if not counted:
            raise DataError(
                "no record has a token to be judged by",
                code="merge.no-records",
                expected="records with an assistant's turn",
                next="give other records",
            )
        losses.append(
            bootstrap(
                [nats / tokens for nats, tokens in counted],
                weights=[tokens for _, tokens in counted],
                name=f"loss/{share:.2f}",
                unit="nats/token",
            )
        )
        if on_point:
            on_point()
    return LossPath(names, shares, tuple(losses))


def load_model(weights: Checkpoint | AdaptedCheckpoint, device: str = "auto") -> tuple[Any, Any]:
    """Load a model and its tokenizer in float32; an adapter is put on its base first.

    Raises:
        CheckpointError: If it cannot be loaded, or an adapted tensor is no parameter of the model.
    """
    import torch

    from stillroom.models import load_causal_lm

    if not isinstance(weights, AdaptedCheckpoint):
        return load_causal_lm(weights.folder, dtype="float32", device=device)
    model, tokenizer = load_causal_lm(weights.base.folder, dtype="float32", device=device)
    parameters = dict(model.named_parameters())
    for name in weights.adapter.names():
        if name not in weights.base:
            continue
        if name not in parameters:
            raise CheckpointError(
                f"the adapter changes '{name:.120}', which the loaded model has not",
                code="merge.adapter-fit",
                where=str(weights.adapter.folder),
                expected="a model whose parameters are named as in its files",
                next="merge the adapter into its base, and inspect that checkpoint",
            )
        rows = weights.rows(name, 0, math.prod(weights.base.shape(name)[:1]))
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(rows))
    return model, tokenizer
