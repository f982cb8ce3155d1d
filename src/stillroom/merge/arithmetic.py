"""Arithmetic that several methods share: task vectors, trimming, votes, exact sums, random masks.

Everything here gives the same bits for any block size and any number of threads: sums go row by row
through numpy (which uses one thread and one order) and are then added exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stillroom.errors import RecipeError
from stillroom.merge.method import Block, Blocks, Place

__all__ = [
    "Cut",
    "disjoint_mean",
    "elect_sign",
    "find_cut",
    "keep_random",
    "products",
    "task_vectors",
    "thin",
    "trim",
    "weighted_sum",
]

_LOW_BITS = 15


@dataclass(frozen=True, slots=True)
class Cut:
    """Which elements of a task vector are kept: those above a magnitude, and some equal to it.

    ``bits`` is the float32 pattern of the magnitude. Of the elements equal to it, those up to
    element ``index`` of tensor ``name`` are kept, in order of tensor name and element: the rule
    that makes ties stable. ``index`` -1 keeps none of that tensor.
    """

    bits: int
    name: str
    index: int


def task_vectors(
    base: torch.Tensor | None, parents: Sequence[torch.Tensor], method: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the base and each parent's difference from it.

    Raises:
        RecipeError: If the merge has no base.
    """
    if base is None:
        raise RecipeError(
            f"{method} merges differences from a base, and there is none",
            code="merge.base",
            where="base",
            expected="the checkpoint that the models were fine-tuned from",
            next="add it to the recipe as 'base'",
        )
    return base, [parent - base for parent in parents]


def weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted sum of tensors in their own type, added in the given order."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def elect_sign(vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return +1 or -1 per element: the sign with the larger weighted mass; a draw elects +."""
    return torch.where(weighted_sum(vectors, weights) >= 0, 1.0, -1.0).to(vectors[0].dtype)


def disjoint_mean(
    vectors: Sequence[torch.Tensor],
    sign: torch.Tensor,
    weights: Sequence[float],
    *,
    normalize: bool = True,
) -> torch.Tensor:
    """Return the weighted mean, per element, of the values that have the elected sign.

    A zero has no sign: it counts neither in the sum nor in the divisor.
    """
    total = torch.zeros_like(vectors[0])
    mass = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        agrees = vector * sign > 0
        total.add_(torch.where(agrees, vector, 0.0), alpha=weight)
        mass.add_(agrees, alpha=weight)
    return total / torch.where(mass == 0, 1.0, mass) if normalize else total


def trim(vector: torch.Tensor, cut: Cut | None, at: Place) -> torch.Tensor:
    """Return the vector with all elements set to zero that the cut does not keep."""
    if cut is None:
        return vector
    bits = _magnitude_bits(vector)
    keep = bits > cut.bits
    if (at.name, at.offset) <= (cut.name, cut.index):
        ties = np.flatnonzero(bits == cut.bits)
        if at.name == cut.name:
            ties = ties[ties <= cut.index - at.offset]
        keep[ties] = True
    return torch.where(torch.from_numpy(keep).view(vector.shape), vector, 0.0)


def find_cut(
    tensors: Callable[[], Iterable[Blocks]],
    vector_of: Callable[[Block], torch.Tensor],
    density: float,
) -> Cut | None:
    """Find which elements make up the ``density`` largest by magnitude, over one tensor or many.

    Exact and in bounded memory: a histogram of the upper bits of the magnitudes finds the bin of
    the threshold, one of the lower bits within it finds the threshold, and a last walk finds the
    element at which equal magnitudes stop being kept. Magnitudes are ranked as float32.

    Args:
        tensors: Gives the tensors in order of name, as often as it is called.
        vector_of: The vector of a block.
        density: Share of elements to keep; 1 or more keeps all.

    Returns:
        The cut, or None where everything is kept.
    """
    upper = np.zeros(1 << (32 - _LOW_BITS), np.int64)
    for _, bits in _walk(tensors, vector_of):
        upper += np.bincount(bits >> _LOW_BITS, minlength=len(upper))
    count = int(upper.sum())
    wanted = max(1, int(density * count)) if density > 0 else 0
    if wanted >= count:
        return None
    if wanted == 0:
        return Cut(np.iinfo(np.int32).max, "", -1)
    top, wanted = _descend(upper, wanted)
    lower = np.zeros(1 << _LOW_BITS, np.int64)
    for _, bits in _walk(tensors, vector_of):
        inside = bits[bits >> _LOW_BITS == top] & ((1 << _LOW_BITS) - 1)
        lower += np.bincount(inside, minlength=len(lower))
    low, wanted = _descend(lower, wanted)
    level = (top << _LOW_BITS) | low
    for at, bits in _walk(tensors, vector_of):
        ties = np.flatnonzero(bits == level)
        if len(ties) >= wanted:
            return Cut(level, at.name, at.offset + int(ties[wanted - 1]))
        wanted -= len(ties)
    raise AssertionError("the blocks changed between two walks")


def products(blocks: Blocks, vectors_of: Callable[[Block], Sequence[torch.Tensor]]) -> np.ndarray:
    """Return the Gram matrix of several vectors over one tensor, (n, n), float64."""
    rows: dict[tuple[int, int], list[float]] = {}
    for block in blocks:
        vectors = [
            vector.reshape(vector.shape[0] if vector.dim() else 1, -1).numpy()
            for vector in vectors_of(block)
        ]
        for i, left in enumerate(vectors):
            for j, right in enumerate(vectors[: i + 1]):
                sums = np.multiply(left, right, dtype=np.float64).sum(axis=1)
                rows.setdefault((i, j), []).extend(sums.tolist())
    size = max((i for i, _ in rows), default=-1) + 1
    gram = np.zeros((size, size))
    for (i, j), parts in rows.items():
        gram[i, j] = gram[j, i] = math.fsum(parts)
    return gram


def keep_random(shape: torch.Size, density: float, key: str, at: Place) -> torch.Tensor:
    """Return a mask that keeps each element with probability ``density``, (shape), bool.

    Drawn by a counter (Philox): element n of tensor ``at.name`` has the same fate for one seed and
    key, however the tensor is cut into blocks and whatever else is merged.
    """
    count = math.prod(shape)
    name = f"{at.seed}\0{at.name}\0{key}".encode("utf-8", "surrogatepass")
    words = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8").astype(np.uint64)
    # One step of the counter gives four words of 64 bits, that is eight elements of 32.
    step, skip = divmod(at.offset, 8)
    stream = np.random.Philox(key=words).advance(step)
    raw = stream.random_raw((skip + count + 1) // 2).astype("<u8")
    kept = raw.view("<u4")[skip : skip + count] < np.uint64(round(density * 2**32))
    return torch.from_numpy(kept).view(shape)


def thin(
    vectors: Sequence[torch.Tensor], density: float, at: Place, *, rescale: bool
) -> list[torch.Tensor]:
    """Return vectors with elements dropped at random, each vector with a mask of its own.

    Args:
        vectors: One a parent, any shape.
        density: Share kept, where the parent has none of its own.
        at: Where the block lies.
        rescale: Divide what is kept by the density.
    """
    kept = []
    densities = at.densities or (None,) * len(vectors)
    for vector, key, own in zip(vectors, at.keys, densities, strict=True):
        share = density if own is None else own
        factor = 1 / share if rescale and share > 0 else 1.0
        mask = keep_random(vector.shape, share, key, at)
        kept.append(torch.where(mask, vector * factor, 0.0))
    return kept


def _walk(
    tensors: Callable[[], Iterable[Blocks]], vector_of: Callable[[Block], torch.Tensor]
) -> Iterator[tuple[Place, np.ndarray]]:
    for blocks in tensors():
        for block in blocks:
            yield block.at, _magnitude_bits(vector_of(block))


def _magnitude_bits(vector: torch.Tensor) -> np.ndarray:
    """Return the float32 patterns of magnitudes, flat; they order as the magnitudes do."""
    return vector.float().abs().reshape(-1).numpy().view(np.int32)


def _descend(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Return the bin that holds the wanted-th largest element, and its rank within the bin."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted))
    return len(counts) - 1 - place, wanted - (int(above[place - 1]) if place else 0)
