"""What mergekit 0.1.5 drops of task vectors, as masks over whole tensors: see ``retracing``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from stillroom.merge.method import Array, Block, Blocks
from stillroom.merge.retracing import (
    Draws,
    Kept,
    Sums,
    levels_of,
    ratio,
    round_one,
    select_largest,
    vector,
)

__all__ = ["drop_at_random", "drop_by_rank", "keep_largest"]

_MAGNITUDE = np.uint32(0x7FFFFFFF)


def keep_largest(blocks: Blocks, densities: Sequence[float], kind: str) -> list[Kept]:
    """Return ``replicas.keep_largest`` of every parent as masks."""
    return [(_largest(blocks, number, each, kind), 1.0) for number, each in enumerate(densities)]


def _largest(blocks: Blocks, parent: int, density: float, kind: str) -> Array | None:
    size = blocks.size
    if density >= 1:
        return None
    if density <= 0:
        return np.zeros(size, bool)
    count = max(1, int(density * size))
    keys = np.empty(size, np.uint32)

    def gather(block: Block) -> None:
        flat = vector(block, parent, kind).reshape(-1).view(np.uint32)
        start = block.at.offset
        np.bitwise_and(flat, _MAGNITUDE, out=keys[start : start + len(flat)])

    blocks.each(gather)
    kept = select_largest(keys, count)
    if kept is None:
        import torch

        floats = torch.from_numpy(keys.view(np.float32))
        kept = np.zeros(size, bool)
        kept[torch.argsort(floats, descending=True)[:count].numpy()] = True
    return kept


def drop_at_random(
    blocks: Blocks, densities: Sequence[float], kind: str, draws: Draws, *, rescale: bool
) -> list[Kept]:
    """Return ``replicas.drop_at_random`` of every parent as masks and factors."""
    masks: list[Array | None] = []
    for density in densities:
        drawn_in = "BF16" if kind == "BF16" else "F32"
        level = levels_of(np.array([round_one(density, drawn_in)]))[0]
        masks.append(draws.keep(blocks.size, level) if density < 1 else None)
    return _scale(blocks, masks, kind, rescale=rescale)


def drop_by_rank(
    blocks: Blocks,
    windows: Sequence[tuple[float, float]],
    kind: str,
    draws: Draws,
    *,
    rescale: bool,
) -> list[Kept]:
    """Return ``replicas.drop_by_rank`` of every parent as masks and factors, for bfloat16."""
    masks: list[Array | None] = []
    width = blocks.at.shape[-1] if blocks.at.shape else 1
    for number, (density, epsilon) in enumerate(windows):
        if density >= 1:
            masks.append(None)
            continue
        levels = _rank_levels(blocks, number, _levels_by_rank(width, density, epsilon), kind)
        masks.append(draws.keep(blocks.size, levels))
    return _scale(blocks, masks, kind, rescale=rescale)


def _rank_levels(blocks: Blocks, parent: int, by_rank: Array, kind: str) -> Array:
    """Return the level of every element, by the rank of its magnitude in its row."""
    levels = np.empty(blocks.size, np.uint32)
    keys = np.empty(blocks.size, np.int16)

    def gather(block: Block) -> None:
        flat = vector(block, parent, kind).reshape(-1).view(np.uint32)
        upper = (flat & _MAGNITUDE) >> np.uint32(16)
        keys[block.at.offset : block.at.offset + len(flat)] = upper

    blocks.each(gather)
    import torch

    # As integers equal magnitudes go the ways that torch's sort sends them, in less time.
    rows = torch.from_numpy(keys).view(-1, len(by_rank))
    shown = torch.from_numpy(levels.view(np.int32)).view(rows.shape)
    source = torch.from_numpy(by_rank.view(np.int32))
    step = max(1, (1 << 20) // len(by_rank))
    for start in range(0, len(rows), step):
        order = rows[start : start + step].argsort(dim=1)
        shown[start : start + step].scatter_(1, order, source.expand(order.shape))
    return levels


@cache
def _levels_by_rank(width: int, density: float, epsilon: float) -> Array:
    """Return the levels of the smallest of a row to the largest, (width,)."""
    import torch

    ranks = torch.arange(width).to(torch.bfloat16) + 1
    least, most = ranks.amin(), ranks.amax()
    rising = ((ranks - least) / (most - least)).clamp(0, 1)
    shares = (density - epsilon) + rising * 2 * epsilon
    return levels_of(shares.float().numpy())


def _scale(
    blocks: Blocks, masks: Sequence[Array | None], kind: str, *, rescale: bool
) -> list[Kept]:
    """Return masks with the factors that restore each vector's L1 norm."""
    if not rescale or all(mask is None for mask in masks):
        return [(mask, 1.0) for mask in masks]

    def reduce(block: Block) -> list[Sums]:
        found = [Sums() for _ in masks]
        for number, (sums, mask) in enumerate(zip(found, masks, strict=True)):
            if mask is not None:
                values = vector(block, number, kind)
                start = block.at.offset
                sums.add(values, mask[start : start + values.size])
        return found

    kept: list[Kept] = []
    for number, (mask, parts) in enumerate(
        zip(masks, zip(*blocks.each(reduce), strict=True), strict=True)
    ):
        if mask is None:
            kept.append((None, 1.0))
            continue
        sums = Sums(
            math.fsum(part.before for part in parts), math.fsum(part.after for part in parts)
        )
        factor = sums.factor()
        kept.append((mask, _add_by_torch(blocks, number, mask, kind) if factor is None else factor))
    return kept


def _add_by_torch(blocks: Blocks, parent: int, mask: Array, kind: str) -> float:
    """Return the factor where the order of adding decides it."""
    import torch

    from stillroom.train.precision import fixed_threads

    whole = np.empty(blocks.size, np.int16)

    def gather(block: Block) -> None:
        flat = vector(block, parent, kind).reshape(-1).view(np.uint32)
        upper = (flat & _MAGNITUDE) >> np.uint32(16)
        whole[block.at.offset : block.at.offset + len(flat)] = upper

    blocks.each(gather)
    sums = []
    with fixed_threads(1):
        for bits in (whole, whole * mask):
            sums.append(torch.from_numpy(bits).view(torch.bfloat16).sum())
    before, after = (np.float32(float(each)) for each in sums)
    return ratio(before, after)
