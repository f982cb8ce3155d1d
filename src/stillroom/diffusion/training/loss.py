"""Cross-entropy at masked positions, and log-probabilities of a policy and its reference.

With the weight 1/t, which ``corruptions.independent`` computes and a batch carries as ``scale``,
``masked_cross_entropy`` is the NELBO, the negative evidence lower bound (ELBO). It is noisy; the
mean cross-entropy of masked tokens by time is the metric to watch.

In small models the head over a large vocabulary is most of the work. It is applied to learned
positions only, and the gradient is computed chunk by chunk with the logits, so that (N, V) is never
stored.

Objectives of preference and reinforcement learning return a loss and its derivative by each
token's log-probability, which becomes the weight of that token's cross-entropy; one pass with
gradients follows, one micro-batch at a time. A loss that couples texts (a sigmoid of two likelihood
bounds, each the mean of several masks) thus needs no more memory than a sum over texts.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.diffusion.model.network import DiffusionModel, split_body_and_head
from stillroom.diffusion.training.data import (
    TIME_BUCKETS,
    CorruptedBatch,
    CorruptedExample,
    collate,
)
from stillroom.train.data import group_by_length
from stillroom.train.loop import Loss

__all__ = [
    "DiffusionLoss",
    "ReferenceModel",
    "batch_cross_entropy",
    "compute_logprobs",
    "eval_without_grad",
    "masked_cross_entropy",
]


class DiffusionLoss:
    """Loss of a micro-batch for the training loop.

    Args:
        model: Diffusion model.
        has_times: Whether to report the cross-entropy by time as well.
    """

    def __init__(self, model: DiffusionModel, *, has_times: bool = True) -> None:
        self.model, self.has_times = model, has_times

    def __call__(self, network: nn.Module, batch: CorruptedBatch) -> Loss:
        """Return the summed loss of a batch, and the summed cross-entropy per time bucket."""
        total, losses = batch_cross_entropy(self.model, batch, network)
        parts: dict[str, float] = {}
        if self.has_times:
            sums = losses.new_zeros(len(TIME_BUCKETS)).index_add_(
                0, batch.bucket.to(losses.device), losses
            )
            for (_, high), value, scale in zip(
                TIME_BUCKETS, sums.tolist(), batch.bucket_scale, strict=True
            ):
                parts[f"masked_ce/t<{high:g}"] = value * scale
        if batch.logged_loss is not None:  # gradient of the sum, value of the objective
            total = total - total.detach() + batch.logged_loss
        return Loss(total, parts)


_CHUNK_ELEMENTS = 2**23


class _MaskedCrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy of a linear head, with gradients of states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: Tensor,
        mask_token_id: int,
    ) -> tuple[Tensor, Tensor]:
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        losses = states.new_zeros(len(labels), dtype=torch.float32)
        by_states = torch.zeros_like(states) if needs_states else None
        by_weight = torch.zeros_like(weight) if needs_weight else None
        by_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        rows = max(_CHUNK_ELEMENTS // weight.shape[0], 1)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            chunk = states[part]
            logits = torch.nn.functional.linear(chunk, weight, bias).float()
            logits[:, mask_token_id] = float("-inf")
            losses[part] = torch.nn.functional.cross_entropy(logits, labels[part], reduction="none")
            if not (needs_states or needs_weight or needs_bias):
                continue
            slope = torch.softmax(logits, -1, out=logits)
            slope[torch.arange(len(chunk), device=chunk.device), labels[part]] -= 1
            slope *= scale[part, None]
            if by_states is not None:
                by_states[part] = (slope.to(weight.dtype) @ weight).to(states.dtype)
            if by_weight is not None:
                by_weight += (slope.to(chunk.dtype).t() @ chunk).to(weight.dtype)
            if by_bias is not None:
                by_bias += slope.sum(0).to(by_bias.dtype)
        ctx.save_for_backward(
            *(t if t is not None else states.new_zeros(0) for t in (by_states, by_weight, by_bias))
        )
        ctx.mark_non_differentiable(losses)
        return (losses * scale).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needs_grad = ctx.needs_input_grad
        scaled = [
            saved * grads[0].to(saved.dtype) if needs_grad[index] else None
            for index, saved in enumerate(ctx.saved_tensors)
        ]
        return (*scaled, None, None, None)


def masked_cross_entropy(
    states: Tensor, head: Any, labels: Tensor, scale: Tensor, mask_token_id: int
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of cross-entropies, differentiable, and each of them, (N,).

    Args:
        states: Inputs of the head, (N, D).
        head: Linear layer with optional bias.
        labels: Target tokens, (N,).
        scale: Weight of each, (N,).
        mask_token_id: Token that is never predicted: its probability is 0.
    """
    apply = cast("Any", _MaskedCrossEntropy.apply)  # typed in some versions of torch only
    total, losses = apply(states, head.weight, head.bias, labels, scale.float(), mask_token_id)
    return total, losses


def batch_cross_entropy(
    model: DiffusionModel, batch: CorruptedBatch, network: Any = None
) -> tuple[Tensor, Tensor]:
    """Return ``masked_cross_entropy`` of a batch's learned tokens.

    Args:
        model: Diffusion model.
        batch: Noisy texts.
        network: Network to use instead of the model's own.
    """
    network = model.network if network is None else network
    states = model.states(batch.ids, batch.positions, batch.seen, network=network)
    device = states.device
    return masked_cross_entropy(
        states.flatten(0, 1)[batch.flat.to(device)],
        split_body_and_head(network)[1],
        batch.labels.to(device),
        batch.scale.to(device),
        model.metadata.mask_token_id,
    )


@contextlib.contextmanager
def eval_without_grad(network: nn.Module) -> Iterator[None]:
    """Disable dropout and gradients within the context."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def compute_logprobs(
    model: DiffusionModel,
    texts: Sequence[CorruptedExample],
    *,
    micro_tokens: int,
    network: Any = None,
) -> list[Tensor]:
    """Return the log-probabilities of each text's learned tokens, in order, (k,) float64 each.

    Args:
        model: Diffusion model.
        texts: Noisy texts.
        micro_tokens: Maximum tokens per forward pass, padding included.
        network: Network to use instead of the model's own.
    """
    by_text: dict[int, Tensor] = {}
    network = model.network if network is None else network
    size = model.metadata.block_size
    lengths = [len(text.ids) * (1 if size is None else 2) for text in texts]
    with eval_without_grad(network):
        for group in group_by_length(range(len(texts)), lengths, micro_tokens):
            group_texts = [texts[number] for number in group]
            batch = collate(group_texts, model.metadata, block_size=size)
            _, losses = batch_cross_entropy(model, batch, network)
            counts = [int(text.is_learned.sum()) for text in group_texts]
            parts = torch.split((-losses).double().cpu(), counts)
            by_text.update(zip(group, parts, strict=True))
    return [by_text[number] for number in range(len(texts))]


class ReferenceModel:
    """Frozen copy of the network at the start of training.

    With LoRA it is the network without adapters, otherwise a deep copy.
    """

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model
        self._copy: Any = None
        if not hasattr(model.network, "disable_adapter"):
            self._copy = copy.deepcopy(model.network).requires_grad_(False)

    def read(self, texts: Sequence[CorruptedExample], *, micro_tokens: int) -> list[Tensor]:
        """Return the log-probabilities of each text's learned tokens, (k,) float64 each."""
        if self._copy is not None:
            return compute_logprobs(
                self._model, texts, micro_tokens=micro_tokens, network=self._copy
            )
        with self._model.network.disable_adapter():
            return compute_logprobs(self._model, texts, micro_tokens=micro_tokens)
