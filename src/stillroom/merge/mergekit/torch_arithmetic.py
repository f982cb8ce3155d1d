"""mergekit 0.1.5's arithmetic in torch, operation by operation.

Written from its documented and observed behavior, to reproduce its bits: every step keeps the
tensors' type, sorts are torch's (not stable), and random numbers come from torch's global
generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stillroom.merge.interfaces import missing_base_error

__all__ = [
    "add_task_vectors",
    "compute_task_vectors",
    "drop_at_random",
    "drop_by_rank",
    "interpolate_by_angle",
    "keep_largest",
    "keep_middle",
    "match_l1_norm",
    "require_base",
    "slerp",
    "stack_task_vectors",
]

_NOTHING = 1e-7
_SHORT = 1e-8
_STRAIGHT = 0.9995
_CHUNK = 1 << 20
_SMALL = 1e-6


def compute_task_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the base and the task vectors.

    Raises:
        RecipeError: If the merge has no base.
    """
    base = require_base(base, method)
    return base, [parent - base for parent in parents]


def keep_largest(vector: torch.Tensor, density: float, *, rescale: bool) -> torch.Tensor:
    """Keep the elements with the largest magnitudes, at least one."""
    if density >= 1:
        return vector
    if density <= 0:
        return torch.zeros_like(vector)
    count = max(1, int(density * vector.numel()))
    flat = vector.abs().reshape(-1)
    if vector.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    mask = torch.zeros_like(flat)
    mask[torch.argsort(flat, descending=True)[:count]] = 1
    pruned = vector * mask.reshape(vector.shape).to(vector.dtype)
    return match_l1_norm(pruned, vector) if rescale else pruned


def keep_middle(
    vector: torch.Tensor, density: float, gamma: float, *, rescale: bool
) -> torch.Tensor:
    """Drop the outliers and the small elements."""
    if density >= 1:
        return vector
    size = vector.numel()
    target, top = int(density * size), int(gamma * size)
    bottom = max(0, size - target - top)
    flat = vector.abs().reshape(-1)
    if vector.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    mask = torch.zeros_like(flat)
    mask[torch.argsort(flat, descending=False)[bottom : bottom + target]] = 1
    pruned = vector * mask.reshape(vector.shape).to(vector.dtype)
    return match_l1_norm(pruned, vector) if rescale else pruned


def drop_at_random(vector: torch.Tensor, density: float, *, rescale: bool) -> torch.Tensor:
    """Keep each element with the same probability."""
    if density >= 1:
        return vector
    shares = torch.full_like(vector, density, dtype=_drawing_type(vector))
    original = _widen(vector)
    pruned = original * torch.bernoulli(shares).to(original.dtype)
    return (match_l1_norm(pruned, original) if rescale else pruned).to(vector.dtype)


def drop_by_rank(
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
    return norm if norm > _SHORT else torch.ones_like(norm)


def _pair_chunks(
    first: torch.Tensor, second: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, first.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield first[part].float(), second[part].float()


def interpolate_by_angle(
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


def require_base(base: torch.Tensor | None, method: str) -> torch.Tensor:
    """Return the base, which must not be None.

    Raises:
        RecipeError: If the merge has no base.
    """
    if base is None:
        raise missing_base_error(method)
    return base


def stack_task_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the base, and the task vectors stacked, (N, ...).

    Raises:
        RecipeError: If the merge has no base.
    """
    base = require_base(base, method)
    return base, torch.stack([parent - base for parent in parents])
