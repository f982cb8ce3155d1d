"""LM head of a causal model, and losses through it in chunks, without the full logits tensor.

The gradient of the loss is computed in the forward pass, chunk by chunk, so that no (N, V) tensor
is formed and the head is applied only at loss positions. The rows of a chunk are scored in tiles
that fit the processor's cache. Everything between head and softmax (bias, scale, soft cap, low-rank
adapters) is part of the head. Based on Hsu et al. 2024 (Liger kernel), arXiv:2410.10989, section
3.2; differs in the tiles, and in that no gradient is copied. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.errors import CheckpointError
from stillroom.train.lora import unwrap_model

__all__ = [
    "CHUNK_ROWS",
    "LMHead",
    "LoraBranch",
    "RowLoss",
    "compute_chunked_loss",
    "compute_hidden",
    "compute_teacher_hidden",
    "compute_token_logprobs",
    "gather_positions",
    "get_body",
]

CHUNK_ROWS = 128
_TILE_ELEMENTS = 1 << 17
RowLoss = Callable[[Tensor, int, int], tuple[Tensor, Tensor, Mapping[str, float]]]
"""Returns (loss (n,), gradient (n, V), parts) for logits (n, V) of rows start to stop."""


@dataclass(frozen=True, slots=True)
class LoraBranch:
    """Low-rank adapter of a head: ``scale * dropout(hidden) @ down.T @ up.T``.

    ``down`` is (r, H), ``up`` is (V, r).
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    dropout: nn.Module | None = None

    def reduce(self, hidden: Tensor) -> Tensor:
        """Return the right operand of ``up``, (N, r), differentiable."""
        dropped = self.dropout(hidden) if self.dropout is not None else hidden
        return (dropped.to(self.down.dtype) @ self.down.t()) * self.scale


@dataclass(frozen=True, slots=True)
class LMHead:
    """Weight (rows, H), bias, and transformation of the logits.

    ``rows`` is the number of the weight's rows that are tokens; the others pad the vocabulary and
    are excluded from the softmax. ``cap`` 0 is no soft cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    rows: int = 0
    scale: float = 1.0
    cap: float = 0.0
    branches: tuple[LoraBranch, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, rows: int = 0) -> LMHead:
        """Read the head of a Hugging Face causal model, truncated to ``rows`` if given.

        Raises:
            CheckpointError: If the model has no linear output head, or an adapter on it other than
                plain LoRA.
        """
        plain = cast("Any", unwrap_model(model))
        linear, branches = _without_adapters(plain.get_output_embeddings())
        weight = getattr(linear, "weight", None)
        if weight is None or weight.ndim != 2 or not weight.is_floating_point():
            raise CheckpointError(
                f"{type(plain).__name__} has no linear output head",
                code="distill.no-head",
                expected="a causal language model whose head is not quantized",
                next="choose another teacher or student",
            )
        config = plain.config
        scale = 1.0
        for name, power in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
            value = getattr(config, name, None)
            if value:
                scale *= float(value) ** power
        cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        bias = getattr(linear, "bias", None)
        return cls(weight, bias, rows or weight.shape[0], scale, cap, branches)

    def logits(self, hidden: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return float32 (or float64) logits, (n, rows), of hidden states (n, H).

        Args:
            hidden: Hidden states of the body.
            dtype: Operand type of the product; None is the weight's.
        """
        return self.shape_logits(self.project(hidden, self.operand(dtype)))

    def operand(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the used rows of the weight in the operand type."""
        return self.weight[: self.rows].to(dtype or self.weight.dtype)

    def project(self, hidden: Tensor, operand: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``hidden @ operand.T`` plus bias and adapters, before scale and cap.

        Args:
            hidden: (n, H).
            operand: From ``operand``.
            out: Output buffer, (n, rows), in full precision; not differentiable.
        """
        raw = _product(hidden, operand, out)
        for branch in self.branches:
            up = branch.up[: self.rows].to(operand.dtype)
            raw += branch.reduce(hidden).to(operand.dtype) @ up.t()
        return raw if self.bias is None else raw.add_(self.bias[: self.rows])

    def shape_logits(self, raw: Tensor) -> Tensor:
        """Apply scale and soft cap, in place."""
        if self.scale != 1:
            raw = raw.mul_(self.scale)
        return raw.div_(self.cap).tanh_().mul_(self.cap) if self.cap else raw

    def shape_gradient(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Convert a gradient by the final logits to one by the raw product, in place."""
        if self.cap:
            gradient.mul_(1 - (logits / self.cap).square_())
        return gradient.mul_(self.scale) if self.scale != 1 else gradient


def get_body(model: nn.Module) -> nn.Module:
    """Return the part of a causal model below the head, which computes hidden states."""
    plain = cast("Any", unwrap_model(model))
    return cast("nn.Module", getattr(plain, plain.base_model_prefix))


def compute_chunked_loss(
    hidden: Tensor,
    head: LMHead,
    score: RowLoss,
    *,
    prepare: Callable[[int, int], None] | None = None,
    tiles: bool = False,
    chunk_rows: int = CHUNK_ROWS,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss of N positions, differentiable by hidden states and head.

    Args:
        hidden: Hidden states at the loss positions, (N, H).
        head: Head of the student; no gradient is computed if it is frozen.
        score: Loss and gradient for the logits of a range of rows; must not modify the logits.
        prepare: Called with a chunk's start and stop before it is scored.
        tiles: Whether to score a few rows at a time, as fit the processor's cache; for a score
            without matrix products.
        chunk_rows: Rows of logits computed at once.
        dtype: Operand type of matrix products; None is the weight's.

    Returns:
        A scalar with a graph (0 if N is 0), and the sums of the loss's parts.
    """
    sweep = _ChunkPass(head, score, prepare, chunk_rows, dtype, tiles)
    branches = [part for item in head.branches for part in (item.reduce(hidden), item.up)]
    apply = cast("Any", _ChunkedLoss.apply)  # typed in only some versions of torch
    total = apply(sweep, hidden, head.weight, head.bias, *branches)
    return cast("Tensor", total), sweep.parts


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sweep: _ChunkPass, *tensors: Tensor | None) -> Tensor:
        hidden, bias = cast("Tensor", tensors[0]), tensors[2]
        needs_grad = ctx.needs_input_grad[1:]
        inputs = [part for part in (hidden, *tensors[3::2]) if part is not None]
        weights = [part for part in (tensors[1], *tensors[4::2]) if part is not None]
        with torch.autocast(hidden.device.type, enabled=False):
            factors = [
                _LogitFactor.of(left, right, sweep.head.rows, sweep.dtype, wants)
                for left, right, wants in zip(
                    inputs,
                    weights,
                    zip(
                        (needs_grad[0], *needs_grad[3::2]),
                        (needs_grad[1], *needs_grad[4::2]),
                        strict=True,
                    ),
                    strict=True,
                )
            ]
            by_bias = None
            if bias is not None and needs_grad[2]:
                by_bias = torch.zeros_like(bias, dtype=_promote(bias.dtype))
            total = sweep.run(factors, bias, by_bias)
        first, *others = factors
        parts = [first.by_input, first.by_weight, by_bias]
        for factor in others:
            parts += [factor.by_input, factor.by_weight]
        ctx.gradients = [
            part if part is None or tensor is None else part.to(tensor.dtype)
            for part, tensor in zip(parts, tensors, strict=True)
        ]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        if _is_graph_kept():
            return (None, *(part if part is None else part * outer[0] for part in ctx.gradients))
        # handed over, not copied: the gradient of a head is large
        scaled = [part if part is None else part.mul_(outer[0]) for part in ctx.gradients]
        ctx.gradients = None
        return (None, *scaled)


@dataclass(slots=True)
class _LogitFactor:
    """One product in the sum of the logits: its operands, and the gradients of both."""

    inputs: Tensor
    operand: Tensor
    by_input: Tensor | None
    by_weight: Tensor | None

    @classmethod
    def of(
        cls,
        inputs: Tensor,
        weight: Tensor,
        rows: int,
        dtype: torch.dtype | None,
        wants: tuple[bool, bool],
    ) -> _LogitFactor:
        operand = weight[:rows].to(dtype or weight.dtype)
        by_input = torch.empty_like(inputs) if wants[0] else None
        by_weight = None
        if wants[1]:
            by_weight = torch.empty_like(weight, dtype=_promote(weight.dtype))
            by_weight[rows if len(inputs) else 0 :].zero_()  # the others are written by the pass
        return cls(inputs, operand, by_input, by_weight)

    def take(self, gradient: Tensor, start: int, stop: int) -> None:
        """Add a chunk's gradient, given the gradient by the raw logits (n, rows)."""
        low = gradient.to(self.operand.dtype)
        if self.by_input is not None:
            _product(low, self.operand.t(), self.by_input[start:stop])
        if self.by_weight is None:
            return
        used = self.by_weight[: len(self.operand)]
        rows = self.inputs[start:stop].to(low.dtype)
        if used.dtype == low.dtype:
            used.addmm_(low.t(), rows, beta=float(start > 0))  # uninitialized in the first chunk
        elif start:
            used += low.t() @ rows
        else:
            used.copy_(low.t() @ rows)


@dataclass(slots=True)
class _ChunkPass:
    """One pass over all rows of a chunked loss."""

    head: LMHead
    score: RowLoss
    prepare: Callable[[int, int], None] | None
    chunk_rows: int
    dtype: torch.dtype | None
    tiles: bool
    parts: dict[str, float] = field(default_factory=dict)

    def run(
        self, factors: Sequence[_LogitFactor], bias: Tensor | None, by_bias: Tensor | None
    ) -> Tensor:
        """Compute loss and gradients chunk by chunk; fills the factors' gradients and ``parts``."""
        first = factors[0]
        count, rows, device = len(first.inputs), self.head.rows, first.inputs.device
        full = _promote(first.operand.dtype)
        space = torch.empty(min(self.chunk_rows, count), rows, dtype=full, device=device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, count, self.chunk_rows):
            stop = min(start + self.chunk_rows, count)
            raw = _product(first.inputs[start:stop], first.operand, space[: stop - start])
            for factor in factors[1:]:
                raw += factor.inputs[start:stop].to(factor.operand.dtype) @ factor.operand.t()
            if bias is not None:
                raw += bias[:rows]
            if self.prepare is not None:
                self.prepare(start, stop)
            total += self._score(raw, start)
            if by_bias is not None:
                by_bias[:rows] += raw.sum(0)
            for factor in factors:
                factor.take(raw, start, stop)
        return total.to(full)

    def _score(self, raw: Tensor, start: int) -> Tensor:
        """Return the summed loss of a chunk; its raw logits are overwritten by their gradient."""
        height = _count_tile_rows(raw) if self.tiles else max(len(raw), 1)
        total = torch.zeros((), dtype=torch.float64, device=raw.device)
        for offset in range(0, len(raw), height):
            tile = raw[offset : offset + height]
            logits = self.head.shape_logits(tile)
            loss, gradient, shares = self.score(logits, start + offset, start + offset + len(tile))
            total += loss.sum(dtype=torch.float64)
            for name, value in shares.items():
                self.parts[name] = self.parts.get(name, 0.0) + value
            tile.copy_(self.head.shape_gradient(gradient, logits))
        return total


def _product(rows: Tensor, operand: Tensor, out: Tensor | None) -> Tensor:
    """Return ``rows @ operand.T`` in full precision, in ``out`` if given."""
    rows = rows.to(operand.dtype)
    if out is None:
        return (rows @ operand.t()).to(_promote(operand.dtype))
    if out.dtype == operand.dtype:
        return torch.mm(rows, operand.t(), out=out)
    return out.copy_(rows @ operand.t())


def _count_tile_rows(raw: Tensor) -> int:
    """Return the number of rows scored at once; on a CPU as many as fit its cache."""
    if raw.device.type != "cpu":
        return max(len(raw), 1)
    return max(1, _TILE_ELEMENTS * torch.get_num_threads() // max(raw.shape[1], 1))


def _without_adapters(layer: Any) -> tuple[Any, tuple[LoraBranch, ...]]:
    """Return the linear layer below peft's wrappers, and the active low-rank adapters."""
    saved = getattr(layer, "modules_to_save", None)
    if saved is not None:
        active = [name for name in layer.active_adapters if name in saved]
        is_off = layer.disable_adapters or not active
        return (layer.original_module if is_off else saved[active[0]]), ()
    plain = getattr(layer, "base_layer", None)
    if plain is None:
        return layer, ()
    if not hasattr(layer, "lora_A"):
        raise _list_adapters(layer)
    if layer.disable_adapters or layer.merged:
        return plain, ()
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    for name in names:
        if name in getattr(layer, "lora_variant", {}) or layer.lora_B[name].bias is not None:
            raise _list_adapters(layer)
    return plain, tuple(
        LoraBranch(
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            float(layer.scaling[name]),
            layer.lora_dropout[name],
        )
        for name in names
    )


def _list_adapters(layer: object) -> CheckpointError:
    return CheckpointError(
        f"the output head has an unsupported adapter: {type(layer).__name__}",
        code="distill.head-adapter",
        where="train.lora.targets",
        expected="plain LoRA on the head, or none",
        next="remove the head from train.lora.targets",
    )


def _is_graph_kept() -> bool:
    """Return whether the running backward pass retains its graph."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())


def _promote(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_hidden(model: nn.Module, input_ids: Tensor, flat: Tensor) -> Tensor:
    """Return a causal model's hidden states at selected positions, (N, H).

    Args:
        model: Causal model.
        input_ids: (B, T).
        flat: Indices into (B * T).
    """
    output = get_body(model)(input_ids=input_ids, use_cache=False)
    return gather_positions(output.last_hidden_state, flat)


def gather_positions(hidden: Tensor, flat: Tensor) -> Tensor:
    """Return hidden states (B, T, H) at selected positions, (N, H)."""
    return hidden.reshape(-1, hidden.shape[-1])[flat]


def compute_teacher_hidden(teacher: nn.Module, input_ids: Tensor, flat: Tensor) -> Tensor:
    """Return ``compute_hidden`` of a model in evaluation mode, without gradient."""
    with torch.no_grad():
        return compute_hidden(teacher, input_ids, flat)


def compute_token_logprobs(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    dtype: torch.dtype | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """Return the log-probability of each position's label, (N,), without gradient.

    Args:
        hidden: (N, H).
        head: Head of the same model.
        labels: Next tokens, (N,).
        dtype: Operand type of the product; None is the weight's.
        chunk_rows: Rows of logits computed at once.
    """
    with torch.no_grad():
        operand = head.operand(dtype)
        parts = []
        for start in range(0, hidden.shape[0], chunk_rows):
            part = slice(start, start + chunk_rows)
            logits = head.shape_logits(head.project(hidden[part], operand))  # (n, V)
            label_logits = logits.gather(-1, labels[part].unsqueeze(-1)).squeeze(-1)
            parts.append(label_logits - logits.logsumexp(-1))
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
