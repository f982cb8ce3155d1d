"""Cross-entropy at the asked places only, the logits of a few rows at a time.

The head over a large vocabulary is most of a small model's work. It is put on asked places alone,
and the gradient is made while a chunk's logits are there, so that (N, V) never exists.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["masked_loss"]

_CHUNK_NUMBERS = 2**23


class _MaskedLoss(torch.autograd.Function):
    """Weighted cross-entropy of a linear head, and its gradient by states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: Tensor,
        never: int,
    ) -> tuple[Tensor, Tensor]:
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        losses = states.new_zeros(len(labels), dtype=torch.float32)
        by_states = torch.zeros_like(states) if needs_states else None
        by_weight = torch.zeros_like(weight) if needs_weight else None
        by_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        rows = max(_CHUNK_NUMBERS // weight.shape[0], 1)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            own = states[part]
            logits = torch.nn.functional.linear(own, weight, bias).float()
            logits[:, never] = float("-inf")
            losses[part] = torch.nn.functional.cross_entropy(logits, labels[part], reduction="none")
            if not (needs_states or needs_weight or needs_bias):
                continue
            slope = torch.softmax(logits, -1, out=logits)
            slope[torch.arange(len(own), device=own.device), labels[part]] -= 1
            slope *= scale[part, None]
            if by_states is not None:
                by_states[part] = (slope.to(weight.dtype) @ weight).to(states.dtype)
            if by_weight is not None:
                by_weight += (slope.to(own.dtype).t() @ own).to(weight.dtype)
            if by_bias is not None:
                by_bias += slope.sum(0).to(by_bias.dtype)
        ctx.save_for_backward(
            *(t if t is not None else states.new_zeros(0) for t in (by_states, by_weight, by_bias))
        )
        ctx.mark_non_differentiable(losses)
        return (losses * scale).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        wanted = ctx.needs_input_grad
        found = [
            saved * grads[0].to(saved.dtype) if wanted[at] else None
            for at, saved in enumerate(ctx.saved_tensors)
        ]
        return (*found, None, None, None)


def masked_loss(
    states: Tensor, head: Any, labels: Tensor, scale: Tensor, never: int
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of cross-entropies, a scalar with a graph, and each one, (N,).

    Args:
        states: What the head is put on, (N, D).
        head: A linear layer, its bias optional.
        labels: Wanted tokens, (N,).
        scale: Weight of each, (N,).
        never: A token that no probability is given to: the mask.
    """
    apply = cast("Any", _MaskedLoss.apply)  # typed in some versions of torch, and not in others
    total, losses = apply(states, head.weight, head.bias, labels, scale.float(), never)
    return total, losses
