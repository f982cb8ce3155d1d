"""The output head of a causal model, and the loss taken through it a few rows at a time.

The loss's gradient is computed in the forward pass, chunk by chunk, so that no (N, V) tensor exists
and no position without loss reaches the head. What a model does between its head and the softmax
(bias, scale, soft cap) is part of the head. Source of the scheme: Hsu et al. 2024 (Liger kernel),
arXiv:2410.10989, section 3.2. No second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.errors import CheckpointError
from stillroom.train.lora import plain_model

__all__ = ["CHUNK_ROWS", "Head", "Score", "body_of", "chunked_loss"]

CHUNK_ROWS = 256

Score = Callable[[Tensor, int, int], tuple[Tensor, Tensor, Mapping[str, float]]]
"""Gives (loss (n,), gradient (n, V), parts) for logits (n, V) of rows start to stop."""


@dataclass(frozen=True, slots=True)
class Head:
    """Weight (rows, H), bias, and what happens to logits afterwards.

    ``rows`` is how many of the weight's rows stand for tokens; the others are padding of the
    vocabulary and take no part in the softmax. ``cap`` 0 is no soft cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    rows: int = 0
    scale: float = 1.0
    cap: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, rows: int = 0) -> Head:
        """Read the head of a Hugging Face causal model, cut to ``rows`` if given.

        Raises:
            CheckpointError: If the model has no linear output head.
        """
        plain = cast("Any", plain_model(model))
        linear = plain.get_output_embeddings()
        weight = getattr(linear, "weight", None)
        if weight is None or weight.ndim != 2:
            raise CheckpointError(
                f"{type(plain).__name__} has no linear output head",
                code="distill.no-head",
                expected="a causal language model",
                next="choose another teacher or student",
            )
        config = plain.config
        scale = 1.0
        for name, power in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
            value = getattr(config, name, None)
            if value:
                scale *= float(value) ** power
        cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        return cls(weight, getattr(linear, "bias", None), rows or weight.shape[0], scale, cap)

    def logits(self, hidden: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return float32 (or float64) logits, (n, rows), of hidden states (n, H).

        Args:
            hidden: From the body.
            dtype: Type of the product's operands; default the weight's own.
        """
        return self.shape_logits(self.project(hidden, self.operand(dtype)))

    def operand(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the used rows of the weight in the type of the product."""
        return self.weight[: self.rows].to(dtype or self.weight.dtype)

    def project(self, hidden: Tensor, operand: Tensor) -> Tensor:
        """Return ``hidden @ operand.T`` plus the bias, before scale and cap, in full precision."""
        raw = (hidden.to(operand.dtype) @ operand.t()).to(_full(operand.dtype))
        return raw if self.bias is None else raw.add_(self.bias[: self.rows])

    def shape_logits(self, raw: Tensor) -> Tensor:
        """Apply scale and soft cap, in place."""
        if self.scale != 1:
            raw = raw.mul_(self.scale)
        return raw.div_(self.cap).tanh_().mul_(self.cap) if self.cap else raw

    def shape_gradient(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn a gradient by the final logits into one by the raw product, in place."""
        if self.cap:
            gradient.mul_(1 - (logits / self.cap).square_())
        return gradient.mul_(self.scale) if self.scale != 1 else gradient


def body_of(model: nn.Module) -> nn.Module:
    """Return the part of a causal model that gives the hidden states before the head."""
    plain = cast("Any", plain_model(model))
    return cast("nn.Module", getattr(plain, plain.base_model_prefix))


def chunked_loss(
    hidden: Tensor,
    head: Head,
    score: Score,
    *,
    chunk_rows: int = CHUNK_ROWS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss of N positions, differentiable by hidden states and head.

    Args:
        hidden: Hidden states of the positions that bear loss, (N, H).
        head: The student's head; its gradient is skipped where it is frozen.
        score: Loss and gradient for the logits of a range of rows.
        chunk_rows: Rows whose logits exist at once.
        dtype: Type of the matrix products' operands; default the weight's own.

    Returns:
        A scalar with a graph (0 where N is 0), and the sums of the loss's parts.
    """
    parts: dict[str, float] = {}
    total = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head, score, chunk_rows, dtype, parts
    )
    return cast("Tensor", total), parts


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        score: Score,
        chunk_rows: int,
        dtype: torch.dtype | None,
        parts: dict[str, float],
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = Head(weight, bias, head.rows, head.scale, head.cap)
        with torch.autocast(hidden.device.type, enabled=False):
            grads = _Gradients(
                torch.empty_like(hidden) if wants_hidden else None,
                torch.zeros_like(weight) if wants_weight else None,
                torch.zeros_like(bias) if wants_bias and bias is not None else None,
            )
            total = _sweep(hidden, head, score, chunk_rows, dtype, grads, parts)
        ctx.save_for_backward(grads.hidden, grads.weight, grads.bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_bias = ctx.saved_tensors
        scaled = [
            None if part is None else part * outer[0].to(part.dtype)
            for part in (by_hidden, by_weight, by_bias)
        ]
        return (*scaled, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class _Gradients:
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _sweep(
    hidden: Tensor,
    head: Head,
    score: Score,
    chunk_rows: int,
    dtype: torch.dtype | None,
    grads: _Gradients,
    parts: dict[str, float],
) -> Tensor:
    """Compute loss and gradients chunk by chunk; fills ``grads`` and ``parts``."""
    operand = head.operand(dtype)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start in range(0, hidden.shape[0], chunk_rows):
        rows = hidden[start : start + chunk_rows].to(operand.dtype)  # (n, H)
        logits = head.shape_logits(head.project(rows, operand))  # (n, V)
        loss, gradient, shares = score(logits, start, start + rows.shape[0])
        total += loss.double().sum()
        for name, value in shares.items():
            parts[name] = parts.get(name, 0.0) + value
        gradient = head.shape_gradient(gradient, logits)
        if grads.bias is not None:
            grads.bias[: head.rows] += gradient.sum(0).to(grads.bias.dtype)
        gradient = gradient.to(operand.dtype)
        if grads.hidden is not None:
            grads.hidden[start : start + rows.shape[0]] = gradient @ operand
        if grads.weight is None:
            continue
        if grads.weight.dtype == operand.dtype:
            grads.weight[: head.rows].addmm_(gradient.t(), rows)
        else:
            grads.weight[: head.rows] += gradient.t() @ rows
    return total.to(_full(operand.dtype))


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
