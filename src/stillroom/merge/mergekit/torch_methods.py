"""The methods of mergekit 0.1.5 on whole tensors, in torch.

Each function takes the method's settings, the base (or None), the parents, and the context with
their weights; it returns the merged tensor with mergekit's bits. Random numbers come from torch's
global generator, which is seeded once per merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import BlockContext
from stillroom.merge.mergekit.parameters import weights_cancel
from stillroom.merge.mergekit.torch_arithmetic import (
    add_task_vectors,
    compute_task_vectors,
    drop_at_random,
    drop_by_rank,
    interpolate_by_angle,
    keep_largest,
    keep_middle,
    require_base,
    slerp,
    stack_task_vectors,
)

__all__ = ["WHOLE_TENSOR_METHODS"]

Tensor: TypeAlias = torch.Tensor
Parents: TypeAlias = Sequence[torch.Tensor]
_MergeTensor: TypeAlias = Callable[[Any, Tensor | None, Parents, BlockContext], Tensor]
_Prune: TypeAlias = Callable[[Any, Parents, BlockContext], list[Tensor]]
_QUARTILES = (0.25, 0.5, 0.75)
_QUARTILE_SAMPLE = 1_000_000
_SHORT = 1e-7


def _linear(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    total = parents[0].float() * context.weights[0]
    for parent, weight in zip(parents[1:], context.weights[1:], strict=True):
        total.add_(parent.float(), alpha=weight)  # fused: one rounding per model
    if m.normalize:
        total /= torch.tensor(list(context.weights), dtype=torch.float32).sum()
    return total.to(parents[0].dtype)


def _slerp(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    return slerp(m.t, parents[0], parents[1])


def _passthrough(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    return parents[0] if m.scale == 1 else parents[0] * m.scale


def _nuslerp(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with an optional base, which is never an input."""
    first_weight, second_weight = context.weights
    cancels = weights_cancel(context.weights)
    share = 0.5 if cancels else second_weight / (first_weight + second_weight)
    vectors = [parent if base is None else parent - base for parent in parents]
    dim = 0 if m.per == "column" else -1
    if m.per == "tensor":
        vectors = [vector.reshape(-1) for vector in vectors]
    lengths = [torch.norm(vector, dim=dim, keepdim=True) for vector in vectors]
    first, second = (
        vector / length.clamp(min=1e-7) for vector, length in zip(vectors, lengths, strict=True)
    )
    cosine = (first * second).sum(dim=dim, keepdim=True).clamp(-1, 1)
    angle = torch.arccos(cosine)
    arc = torch.sin((1 - share) * angle) * vectors[0] + torch.sin(share * angle) * vectors[1]
    straight = (1 - share) * vectors[0] + share * vectors[1]
    merged = torch.where(1 - cosine**2 <= 1e-16, straight, arc / torch.sin(angle))
    merged = merged.reshape(parents[0].shape)
    return merged if base is None else base + merged


def _multislerp(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with an optional base, which is never an input.

    Raises:
        RecipeError: If three or more directions cancel out, as in mergekit.
    """
    stacked = torch.stack(list(parents))
    vectors = (stacked if base is None else stacked - base).reshape(len(parents), -1)
    weights = torch.tensor(context.weights, dtype=vectors.dtype)
    if m.normalize:
        weights = weights / weights.sum()
    column = weights.view(-1, 1)
    lengths = torch.norm(vectors, dim=1, keepdim=True)
    units = vectors / (lengths + m.eps)
    mean = (units * column).sum(0)
    size = torch.norm(mean)
    if size < m.eps and len(vectors) == 2:
        merged = (vectors * column).sum(0)
    elif size < m.eps:
        raise RecipeError(
            f"the weighted directions of '{context.name}' cancel out, which mergekit does not "
            f"support",
            code="merge.cancelled",
            where=context.name,
            expected="directions with a nonzero mean, such as models that differ from the base",
            next="merge with arithmetic: paper, which then uses the weighted sum",
        )
    else:
        mean = mean / size
        tangents = units - (units * mean).sum(1, keepdim=True) * mean
        tangent = (tangents * column).sum(0)
        step = torch.norm(tangent) + m.eps
        merged = mean * torch.cos(step) + tangent * (torch.sin(step) / step)
        merged = merged * (lengths.squeeze(-1) * weights).sum()
    merged = merged.view(parents[0].shape)
    return merged if base is None else base + merged


def _karcher(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge without weights; a base is averaged in, last.

    mergekit does the same with a base that is not among its models. If it is among them, pass it in
    ``parents`` and ``base`` as None, or it would count twice.
    """
    inputs = [*parents, *([] if base is None else [base])]
    lengths = [torch.linalg.norm(tensor.float()) for tensor in inputs]
    units = [
        tensor / length
        for tensor, length in zip(inputs, lengths, strict=True)
        if float(length) > _SHORT
    ]
    if not units:
        return torch.zeros_like(parents[0])
    point = _find_karcher_mean(units, m.max_iter, m.tol)
    length = sum(((1 / len(inputs)) * length for length in lengths), torch.zeros(()))
    return length * point


def _find_karcher_mean(units: Parents, max_steps: int, tolerance: float) -> Tensor:
    share = 1 / len(units)
    point = torch.zeros_like(units[0])
    for unit in units:
        point = point + share * unit
    size = torch.linalg.norm(point.float())
    point = point / size if float(size) > _SHORT else units[0].clone()
    for _ in range(max_steps):
        tangent = torch.zeros_like(point)
        for unit in units:
            cosine = torch.clamp(torch.dot(point.reshape(-1), unit.reshape(-1)), -1, 1)
            angle = torch.arccos(cosine)
            if float(angle) >= tolerance:
                factor = share * (angle / torch.sin(angle))
                tangent = tangent + factor * (unit - cosine * point)
        size = torch.linalg.norm(tangent.float())
        if float(size) < tolerance:
            break
        point = torch.cos(size) * point + torch.sin(size) * (tangent / size)
        point = point / torch.linalg.norm(point.float())
    return point


def _task_arithmetic(
    m: Any, base: Tensor | None, parents: Parents, context: BlockContext
) -> Tensor:
    base, vectors = compute_task_vectors(base, parents, "task_arithmetic")
    return add_task_vectors(
        base, vectors, context.weights, votes=False, normalize=m.normalize, scale=m.scale
    )


def _after_pruning(prune: _Prune) -> _MergeTensor:
    """Return the merge of a family: prune task vectors, then sum them or let them vote."""

    def merge(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
        base, vectors = compute_task_vectors(base, parents, m.method_name())
        return add_task_vectors(
            base,
            prune(m, vectors, context),
            context.weights,
            votes=m.votes,
            normalize=m.normalize,
            scale=m.scale,
        )

    return merge


def _prune_ties(m: Any, vectors: Parents, context: BlockContext) -> list[Tensor]:
    densities = context.values("density", m.density)
    return [
        keep_largest(vector, density, rescale=m.rescale)
        for vector, density in zip(vectors, densities, strict=True)
    ]


def _prune_dare(m: Any, vectors: Parents, context: BlockContext) -> list[Tensor]:
    densities = context.values("density", m.density)
    return [
        drop_at_random(vector, density, rescale=m.rescale)
        for vector, density in zip(vectors, densities, strict=True)
    ]


def _prune_della(m: Any, vectors: Parents, context: BlockContext) -> list[Tensor]:
    windows = m.probability_windows(context, below_one=True)
    return [
        drop_by_rank(vector, *window, rescale=m.rescale)
        for vector, window in zip(vectors, windows, strict=True)
    ]


def _prune_breadcrumbs(m: Any, vectors: Parents, context: BlockContext) -> list[Tensor]:
    densities = context.values("density", m.density)
    gammas = context.values("gamma", m.gamma)
    return [
        keep_middle(vector, density, gamma, rescale=m.rescale)
        for vector, density, gamma in zip(vectors, densities, gammas, strict=True)
    ]


def _sce(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with ``density`` as the share of the elements with nonzero variance.

    If the total energy is below 1e-6, as for small fine-tunes, all models get equal weights.
    """
    base, vectors = stack_task_vectors(base, parents, "sce")
    if m.density < 1:
        spread = torch.var(vectors, dim=0, unbiased=False)
        count = int(int(torch.count_nonzero(spread)) * m.density)
        mask = torch.zeros_like(spread)
        if count > 0:
            mask.view(-1)[torch.topk(spread.reshape(-1), count).indices] = 1
        vectors = vectors * mask
    inner = list(range(1, vectors.dim()))
    energy = vectors.pow(2).mean(dim=inner) if inner else vectors.pow(2)
    total = energy.sum()
    alike = torch.ones_like(energy) / len(parents)
    shares = energy / total if float(total) > 1e-6 else alike
    sign = (vectors.sum(0) >= 0).to(vectors.dtype) * 2 - 1
    weights = shares.view(-1, *[1] * base.dim()) * (vectors.sign() == sign)
    return base + (vectors * weights).sum(0) / weights.sum(0).clamp(min=1e-6)


def _model_stock(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    base, vectors = compute_task_vectors(base, parents, "model_stock")
    return interpolate_by_angle(base, vectors, parents, by_row=m.by_row)


def _nearswap(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    base, model = require_base(base, "nearswap"), parents[0]
    share = (m.t / (base - model).abs()).nan_to_num(nan=1.0, posinf=1.0).clamp(0, 1)
    merged: Tensor = (1 - share) * base + share * model
    return merged


def _arcee_fusion(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with quartiles of a sample; the float32 mask makes the result float32."""
    base, (model,) = require_base(base, "arcee_fusion"), parents
    new, old = torch.softmax(model, -1) + 1e-8, torch.softmax(base, -1) + 1e-8
    divergence = (new * torch.log(new / old)).sum(-1, keepdim=True)
    importance = (model - base).abs() * divergence
    sampled = importance.reshape(-1)
    if sampled.numel() > _QUARTILE_SAMPLE:
        sampled = sampled[torch.randint(0, sampled.numel(), (_QUARTILE_SAMPLE,))]
    ordered = torch.sort(sampled).values
    low, middle, high = (ordered[int(part * (len(ordered) - 1))] for part in _QUARTILES)
    mask = (importance >= middle + m.fence * (high - low)).to(torch.float32)
    merged: Tensor = (base + (model - base) * mask).reshape(base.shape)
    return merged


def _ram(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with each model's change divided before the sum."""
    base, vectors = stack_task_vectors(base, parents, "ram")
    changed = vectors.abs() > m.epsilon
    changes = torch.where(changed, vectors, torch.zeros_like(vectors))
    merged: Tensor = base + (changes / changed.sum(0).clamp(min=1)).sum(0)
    return merged


def _ramplus_tl(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with float32 factors, which make the result float32."""
    base, vectors = stack_task_vectors(base, parents, "ramplus_tl")
    changed = vectors.abs() > m.epsilon
    count = changed.sum(0)
    unique = count == 1
    alone = (changed & unique).reshape(len(parents), -1).sum(1)
    shared = (changed & (count > 1)).reshape(len(parents), -1).sum(1)
    ratio = torch.where(alone > 0, shared / alone.clamp(min=1), torch.zeros(()))
    column = (1 + m.r * ratio.clamp(0, m.alpha)).view(-1, *[1] * base.dim())
    changes = torch.where(changed, vectors, torch.zeros_like(vectors))
    enlarged = torch.where(unique, changes * column, changes / count.clamp(min=1))
    merged: Tensor = base + enlarged.sum(0)
    return merged


_DARE, _DELLA = _after_pruning(_prune_dare), _after_pruning(_prune_della)
_BREADCRUMBS = _after_pruning(_prune_breadcrumbs)

WHOLE_TENSOR_METHODS: Mapping[str, _MergeTensor] = {
    "arcee_fusion": _arcee_fusion,
    "breadcrumbs": _BREADCRUMBS,
    "breadcrumbs_ties": _BREADCRUMBS,
    "dare_linear": _DARE,
    "dare_ties": _DARE,
    "della": _DELLA,
    "della_linear": _DELLA,
    "karcher": _karcher,
    "linear": _linear,
    "model_stock": _model_stock,
    "multislerp": _multislerp,
    "nearswap": _nearswap,
    "nuslerp": _nuslerp,
    "passthrough": _passthrough,
    "ram": _ram,
    "ramplus_tl": _ramplus_tl,
    "sce": _sce,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _after_pruning(_prune_ties),
}
"""Every method of mergekit 0.1.5, by name."""
