"""mergekit 0.1.5's arithmetic in torch, operation by operation.

Written from its described and observed behavior, to give the bits that it gives: every step keeps
the type of the tensors, sorts are torch's own (which keep no order among equals), random numbers
come from torch's global generator.
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
    "keep_largest",
    "keep_middle",
    "match_l1_norm",
    "model_stock",
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
    """Return a vector of which the largest magnitudes are left, one at least."""
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
    kept = vector * mask.reshape(vector.shape).to(vector.dtype)
    return match_l1_norm(kept, vector) if rescale else kept


def keep_middle(
    vector: torch.Tensor, density: float, gamma: float, *, rescale: bool
) -> torch.Tensor:
    """Return a vector that lost its outliers and its small elements."""
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
    kept = vector * mask.reshape(vector.shape).to(vector.dtype)
    return match_l1_norm(kept, vector) if rescale else kept


def drop_at_random(vector: torch.Tensor, density: float, *, rescale: bool) -> torch.Tensor:
    """Return a vector of which each element is kept with one probability."""
    if density >= 1:
        return vector
    shares = torch.full_like(vector, density, dtype=_drawing_type(vector))
    whole = _widen(vector)
    kept = whole * torch.bernoulli(shares).to(whole.dtype)
    return (match_l1_norm(kept, whole) if rescale else kept).to(vector.dtype)


def drop_by_rank(
    vector: torch.Tensor, density: float, epsilon: float, *, rescale: bool
) -> torch.Tensor:
    """Return a vector of which small elements of a row are dropped more often than large ones."""
    if density >= 1:
        return vector
    rows = _widen(vector if vector.dim() > 1 else vector.reshape(1, -1))
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(rows.dtype) + 1
    least, most = ranks.amin(1, keepdim=True), ranks.amax(1, keepdim=True)
    rising = ((ranks - least) / (most - least)).clamp(0, 1)
    if rows.shape[1] == 1:  # 0 / 0, of which mergekit can draw nothing: the window's middle
        rising = torch.full_like(rising, 0.5)
    shares = (density - epsilon) + rising * 2 * epsilon
    kept = rows * torch.bernoulli(shares.to(_drawing_type(vector))).to(rows.dtype)
    kept = match_l1_norm(kept, rows) if rescale else kept
    return kept.reshape(vector.shape).to(vector.dtype)


def match_l1_norm(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return what was kept, as long by L1 norm as the whole was."""
    before, after = whole.abs().sum(), kept.abs().sum()
    if before < _NOTHING or after < _NOTHING:
        return kept
    return kept * (before / after)


def add_task_vectors(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    votes: bool,
    normalize: bool,
    scale: float,
) -> torch.Tensor:
    """Return the base with the weighted task vectors added: all, or those that a vote elects."""
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
    """Return a vector as random drops compute with it: float16 is widened, bfloat16 is not."""
    return vector.float() if vector.dtype == torch.float16 else vector


def slerp(t: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the point on the great circle between two tensors taken as vectors, in float32."""
    way = torch.tensor(t, dtype=torch.float32)  # mergekit holds it so
    one, two = first.reshape(-1), second.reshape(-1)
    norms = [_find_norm(each) for each in (one, two)]
    turned = torch.zeros((), dtype=torch.float32)
    for left, right in _pair_chunks(one, two):
        turned += ((left / norms[0]) * (right / norms[1])).sum()
    if turned.abs() > _STRAIGHT:
        shares = (float(1 - way), float(way))
    else:
        angle = torch.arccos(turned)
        under = torch.sin(angle)
        shares = (
            float(torch.sin((1 - way) * angle) / under),
            float(torch.sin(way * angle) / under),
        )
    parts = [
        (shares[0] * left + shares[1] * right).to(first.dtype)
        for left, right in _pair_chunks(one, two)
    ]
    return torch.cat(parts).reshape(first.shape) if parts else first.clone()


def _find_norm(vector: torch.Tensor) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(part) for part, _ in _pair_chunks(vector, vector)]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    return norm if norm > _SHORT else torch.ones_like(norm)


def _pair_chunks(
    one: torch.Tensor, two: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for at in range(0, one.numel(), _CHUNK):
        part = slice(at, at + _CHUNK)
        yield one[part].float(), two[part].float()


def model_stock(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    parents: Sequence[torch.Tensor],
    *,
    by_row: bool,
) -> torch.Tensor:
    """Return the mean of the models, drawn to the base by how much their task vectors differ."""
    dims = base.shape
    if by_row and base.dim() > 1:
        flat = [vector.reshape(-1, vector.shape[-1]) for vector in vectors]
    else:
        flat = [vector.reshape(1, -1) for vector in vectors]
    cosines = []
    for i, one in enumerate(flat):
        for two in flat[i + 1 :]:
            norms = torch.norm(one, dim=-1) * torch.norm(two, dim=-1)
            cosines.append((one * two).sum(dim=-1) / norms.clamp(min=_SMALL))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    count = len(vectors)
    under = 1 + (count - 1) * cosine
    t = torch.where(under.abs() < _SMALL, torch.zeros_like(cosine), count * cosine / under)
    total = parents[0]
    for parent in parents[1:]:
        total = total + parent  # in the models' own type, rounded every time
    mean = total / count
    rows = (flat[0].shape[0], -1)
    return (t * mean.reshape(rows) + (1 - t) * base.reshape(rows)).reshape(dims)


def require_base(base: torch.Tensor | None, method: str) -> torch.Tensor:
    """Return the base.

    Raises:
        RecipeError: If the merge has none.
    """
    if base is None:
        raise missing_base_error(method)
    return base


def stack_task_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the base, and the differences from it in one tensor, (N, ...).

    Raises:
        RecipeError: If the merge has no base.
    """
    import torch

    base = require_base(base, method)
    return base, torch.stack([parent - base for parent in parents])
