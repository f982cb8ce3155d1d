"""The methods of mergekit 0.1.5 on whole tensors, in torch.

Each function takes the method's settings, the base (or None), the parents, and the context with
their weights; it returns the merged tensor with mergekit's bits. Random numbers come from torch's
global generator, which is seeded once per merge.

Written from its documented and observed behavior, to reproduce its bits: every step keeps the
tensors' type, sorts are torch's (not stable), and random numbers come from torch's global
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import BlockContext, missing_base_error
from stillroom.merge.mergekit.parameters import weights_cancel

__all__ = [
    "WHOLE_TENSOR_METHODS",
    "add_task_vectors",
    "magprune",
    "match_l1_norm",
    "random_sparsify",
    "slerp",
    "trim",
    "trim_to_band",
]

Tensor: TypeAlias = torch.Tensor
Parents: TypeAlias = Sequence[torch.Tensor]
_MergeTensor: TypeAlias = Callable[[Any, Tensor | None, Parents, BlockContext], Tensor]
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
    base, vectors = _compute_task_vectors(base, parents, "task_arithmetic")
    return add_task_vectors(
        base, vectors, context.weights, votes=False, normalize=m.normalize, scale=m.scale
    )


def _after_pruning(
    prune: Callable[..., Tensor], read_settings: Callable[[Any, BlockContext], list[Any]]
) -> _MergeTensor:
    """Return the merge of a family: prune task vectors, then sum them or let them vote.

    ``read_settings`` returns what ``prune`` takes of each model, after its task vector.
    """

    def merge(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
        base, vectors = _compute_task_vectors(base, parents, m.method_name())
        pruned = [
            prune(vector, *settings, rescale=m.rescale)
            for vector, settings in zip(vectors, read_settings(m, context), strict=True)
        ]
        return add_task_vectors(
            base, pruned, context.weights, votes=m.votes, normalize=m.normalize, scale=m.scale
        )

    return merge


def _read_densities(m: Any, context: BlockContext) -> list[tuple[float]]:
    return [(density,) for density in context.values("density", m.density)]


def _read_bands(m: Any, context: BlockContext) -> list[tuple[float, float]]:
    densities = context.values("density", m.density)
    return list(zip(densities, context.values("gamma", m.gamma), strict=True))


def _sce(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with ``density`` as the share of the elements with nonzero variance.

    If the total energy is below 1e-6, as for small fine-tunes, all models get equal weights.
    """
    base, vectors = _stack_task_vectors(base, parents, "sce")
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
    base, vectors = _compute_task_vectors(base, parents, "model_stock")
    return _interpolate_by_angle(base, vectors, parents, by_row=m.by_row)


def _nearswap(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    base, model = _require_base(base, "nearswap"), parents[0]
    share = (m.t / (base - model).abs()).nan_to_num(nan=1.0, posinf=1.0).clamp(0, 1)
    merged: Tensor = (1 - share) * base + share * model
    return merged


def _arcee_fusion(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with quartiles of a sample; the float32 mask makes the result float32."""
    base, (model,) = _require_base(base, "arcee_fusion"), parents
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
    base, vectors = _stack_task_vectors(base, parents, "ram")
    changed = vectors.abs() > m.epsilon
    changes = torch.where(changed, vectors, torch.zeros_like(vectors))
    merged: Tensor = base + (changes / changed.sum(0).clamp(min=1)).sum(0)
    return merged


def _ramplus_tl(m: Any, base: Tensor | None, parents: Parents, context: BlockContext) -> Tensor:
    """Merge with float32 factors, which make the result float32."""
    base, vectors = _stack_task_vectors(base, parents, "ramplus_tl")
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


_NOTHING = 1e-7
_SHORT_SUMS = 1e-8
_STRAIGHT = 0.9995
_CHUNK = 1 << 20
_SMALL = 1e-6


def _compute_task_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the base and the task vectors.

    Raises:
        RecipeError: If the merge has no base.
    """
    base = _require_base(base, method)
    return base, [parent - base for parent in parents]


def trim(vector: torch.Tensor, density: float, *, rescale: bool) -> torch.Tensor:
    """Keep the elements with the largest magnitudes, at least one."""
    if density >= 1:
        return vector
    if density <= 0:
        return torch.zeros_like(vector)
    count = max(1, int(density * vector.numel()))
    return _keep_sorted(vector, slice(count), descending=True, rescale=rescale)


def trim_to_band(
    vector: torch.Tensor, density: float, gamma: float, *, rescale: bool
) -> torch.Tensor:
    """Drop the outliers and the small elements."""
    if density >= 1:
        return vector
    size = vector.numel()
    target, top = int(density * size), int(gamma * size)
    bottom = max(0, size - target - top)
    place = slice(bottom, bottom + target)
    return _keep_sorted(vector, place, descending=False, rescale=rescale)


def _keep_sorted(
    vector: torch.Tensor, place: slice, *, descending: bool, rescale: bool
) -> torch.Tensor:
    """Keep the elements in some places of torch's (not stable) order of magnitudes."""
    flat = vector.abs().reshape(-1)
    if vector.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    mask = torch.zeros_like(flat)
    mask[torch.argsort(flat, descending=descending)[place]] = 1
    pruned = vector * mask.reshape(vector.shape).to(vector.dtype)
    return match_l1_norm(pruned, vector) if rescale else pruned


def random_sparsify(vector: torch.Tensor, density: float, *, rescale: bool) -> torch.Tensor:
    """Keep each element with the same probability."""
    if density >= 1:
        return vector
    shares = torch.full_like(vector, density, dtype=_drawing_type(vector))
    original = _widen(vector)
    pruned = original * torch.bernoulli(shares).to(original.dtype)
    return (match_l1_norm(pruned, original) if rescale else pruned).to(vector.dtype)


def magprune(
    vector: torch.Tensor, density: float, epsilon: float, *, rescale: bool
) -> torch.Tensor:
    """Drop small elements of a row more often than large ones."""
    if density >= 1:
        return vector
    if density <= 0:  # mergekit draws nothing
        return torch.zeros_like(vector)
    rows = _widen(vector if vector.dim() > 1 else vector.reshape(1, -1))
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(rows.dtype) + 1
    least, most = ranks.amin(1, keepdim=True), ranks.amax(1, keepdim=True)
    rising = ((ranks - least) / (most - least)).clamp(0, 1)
    if rows.shape[1] == 1:  # 0 / 0, for which mergekit fails: use the middle of the window
        rising = torch.full_like(rising, 0.5)
    shares = (density - epsilon) + rising * 2 * epsilon
    pruned = rows * torch.bernoulli(shares.to(_drawing_type(vector))).to(rows.dtype)
    pruned = match_l1_norm(pruned, rows) if rescale else pruned
    return pruned.reshape(vector.shape).to(vector.dtype)


def match_l1_norm(pruned: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Rescale a pruned vector to the L1 norm of the original."""
    before, after = original.abs().sum(), pruned.abs().sum()
    if before < _NOTHING or after < _NOTHING:
        return pruned
    return pruned * (before / after)


def add_task_vectors(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    votes: bool,
    normalize: bool,
    scale: float,
) -> torch.Tensor:
    """Return the base plus the weighted task vectors, optionally after sign election."""
    stack = torch.stack(list(vectors))
    shares = torch.tensor(list(weights), dtype=stack.dtype).view(-1, *[1] * base.dim())
    stack = stack * shares
    if votes:
        elected = (stack.sum(0) >= 0).to(stack.dtype) * 2 - 1
        agree = stack.sign() == elected
        total = (stack * agree).sum(0)
        mass = (shares * agree).sum(0)
    else:
        total, mass = stack.sum(0), shares.sum(0)
    if normalize:
        mass = torch.where(mass == 0, torch.ones_like(mass), mass)
        total = total / mass
    if scale != 1:
        total = total * scale
    return base + total


def _drawing_type(vector: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if vector.dtype == torch.bfloat16 else torch.float32


def _widen(vector: torch.Tensor) -> torch.Tensor:
    """Convert to the type of random drops: float16 becomes float32, bfloat16 stays."""
    return vector.float() if vector.dtype == torch.float16 else vector


def slerp(t: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Interpolate spherically between two flattened tensors, in float32."""
    weight = torch.tensor(t, dtype=torch.float32)  # as in mergekit
    first_flat, second_flat = first.reshape(-1), second.reshape(-1)
    norms = [_find_norm(vector) for vector in (first_flat, second_flat)]
    cosine = torch.zeros((), dtype=torch.float32)
    for first_part, second_part in _pair_chunks(first_flat, second_flat):
        cosine += ((first_part / norms[0]) * (second_part / norms[1])).sum()
    if cosine.abs() > _STRAIGHT:
        shares = (float(1 - weight), float(weight))
    else:
        angle = torch.arccos(cosine)
        sine = torch.sin(angle)
        shares = (
            float(torch.sin((1 - weight) * angle) / sine),
            float(torch.sin(weight * angle) / sine),
        )
    parts = [
        (shares[0] * first_part + shares[1] * second_part).to(first.dtype)
        for first_part, second_part in _pair_chunks(first_flat, second_flat)
    ]
    return torch.cat(parts).reshape(first.shape) if parts else first.clone()


def _find_norm(vector: torch.Tensor) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(part) for part, _ in _pair_chunks(vector, vector)]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    return norm if norm > _SHORT_SUMS else torch.ones_like(norm)


def _pair_chunks(
    first: torch.Tensor, second: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, first.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield first[part].float(), second[part].float()


def _interpolate_by_angle(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    parents: Sequence[torch.Tensor],
    *,
    by_row: bool,
) -> torch.Tensor:
    """Interpolate between base and mean by the similarity of the task vectors."""
    dims = base.shape
    if by_row and base.dim() > 1:
        flat = [vector.reshape(-1, vector.shape[-1]) for vector in vectors]
    else:
        flat = [vector.reshape(1, -1) for vector in vectors]
    cosines = []
    for i, first in enumerate(flat):
        for second in flat[i + 1 :]:
            norms = torch.norm(first, dim=-1) * torch.norm(second, dim=-1)
            cosines.append((first * second).sum(dim=-1) / norms.clamp(min=_SMALL))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    count = len(vectors)
    denominator = 1 + (count - 1) * cosine
    t = torch.where(
        denominator.abs() < _SMALL, torch.zeros_like(cosine), count * cosine / denominator
    )
    total = parents[0]
    for parent in parents[1:]:
        total = total + parent  # in the models' type, rounded after every addition
    mean = total / count
    rows = (flat[0].shape[0], -1)
    return (t * mean.reshape(rows) + (1 - t) * base.reshape(rows)).reshape(dims)


def _require_base(base: torch.Tensor | None, method: str) -> torch.Tensor:
    """Return the base, which must not be None.

    Raises:
        RecipeError: If the merge has no base.
    """
    if base is None:
        raise missing_base_error(method)
    return base


def _stack_task_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the base, and the task vectors stacked, (N, ...).

    Raises:
        RecipeError: If the merge has no base.
    """
    base = _require_base(base, method)
    return base, torch.stack([parent - base for parent in parents])


_DARE = _after_pruning(random_sparsify, _read_densities)
_DELLA = _after_pruning(magprune, lambda m, context: m.probability_windows(context, below_one=True))
_BREADCRUMBS = _after_pruning(trim_to_band, _read_bands)

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
    "passthrough": lambda m, base, parents, context: (
        parents[0] if m.scale == 1 else parents[0] * m.scale
    ),
    "ram": _ram,
    "ramplus_tl": _ramplus_tl,
    "sce": _sce,
    "slerp": lambda m, base, parents, context: slerp(m.t, parents[0], parents[1]),
    "task_arithmetic": _task_arithmetic,
    "ties": _after_pruning(trim, _read_densities),
}
"""Every method of mergekit 0.1.5, by name."""
