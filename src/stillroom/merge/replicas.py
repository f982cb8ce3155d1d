"""mergekit 0.1.5's arithmetic in torch, operation by operation: what ``replicate``s share.

Written from its described and observed behavior, to give the bits that it gives: every step keeps
the type of the tensors, sorts are torch's own (which keep no order among equals), random numbers
come from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stillroom.merge.arithmetic import no_base

__all__ = [
    "combine",
    "drop_at_random",
    "drop_by_rank",
    "keep_largest",
    "keep_middle",
    "match_length",
    "slerp",
    "stock",
    "subtract",
]

_NOTHING = 1e-7
_SHORT = 1e-8
_STRAIGHT = 0.9995
_CHUNK = 1 << 20
_SMALL = 1e-6


def subtract(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the base and the task vectors.

    Raises:
        RecipeError: If the merge has no base.
    """
    if base is None:
        raise no_base(method)
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
    return match_length(kept, vector) if rescale else kept


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
    return match_length(kept, vector) if rescale else kept


def drop_at_random(vector: torch.Tensor, density: float, *, rescale: bool) -> torch.Tensor:
    """Return a vector of which each element is kept with one probability."""
    if density >= 1:
        return vector
    shares = torch.full_like(vector, density, dtype=_drawing_type(vector))
    whole = _widen(vector)
    kept = whole * torch.bernoulli(shares).to(whole.dtype)
    return (match_length(kept, whole) if rescale else kept).to(vector.dtype)


def drop_by_rank(
    vector: torch.Tensor, density: float, epsilon: float, *, rescale: bool
) -> torch.Tensor:
    """Return a vector of which small elements of a row are dropped more often than large ones."""
    if density >= 1:
        return vector
    rows = _widen(vector if vector.dim() > 1 else vector.unsqueeze(0))
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(rows.dtype) + 1
    least, most = ranks.amin(1, keepdim=True), ranks.amax(1, keepdim=True)
    rising = ((ranks - least) / (most - least)).clamp(0, 1)
    shares = (density - epsilon) + rising * 2 * epsilon
    kept = rows * torch.bernoulli(shares.to(_drawing_type(vector))).to(rows.dtype)
    kept = match_length(kept, rows) if rescale else kept
    return kept.reshape(vector.shape).to(vector.dtype)


def match_length(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return what was kept, as long by L1 norm as the whole was."""
    before, after = whole.abs().sum(), kept.abs().sum()
    if before < _NOTHING or after < _NOTHING:
        return kept
    return kept * (before / after)


def combine(
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
