"""What mergekit 0.1.5 drops of task vectors, whole tensor by whole tensor: see ``retracing``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from stillroom.checkpoints.numbers import widen
from stillroom.merge.method import Array, Block
from stillroom.merge.retracing import (
    CastBlocks,
    Draws,
    Pruned,
    Sums,
    levels_of,
    ratio,
    round_one,
    select_largest,
    store,
    vector,
)

__all__ = ["drop_at_random", "drop_by_rank", "gather", "keep_largest"]

_CHUNK = 1 << 15


def gather(blocks: CastBlocks) -> list[Array]:
    """Return every parent's task vector as it is stored, (size,)."""
    kept: list[Array] = [
        np.empty(blocks.size, store(np.zeros(1, np.float32), blocks.kind).dtype)
        for _ in blocks.at.weights
    ]

    def reduce(block: Block) -> None:
        for number, whole in enumerate(kept):
            flat = store(vector(block, number, blocks.kind), blocks.kind)
            whole[block.at.offset : block.at.offset + len(flat)] = flat

    blocks.each(reduce)
    return kept


def keep_largest(blocks: CastBlocks, densities: Sequence[float]) -> list[Pruned]:
    """Return ``replicas.keep_largest`` of every parent."""
    vectors = gather(blocks)
    room = np.empty(blocks.size, np.uint64)
    for bits, density in zip(vectors, densities, strict=True):
        if density <= 0:
            bits[:] = 0
        elif density < 1:
            _mask(bits, _find_largest(bits, max(1, int(density * len(bits))), room))
    return [Pruned(bits) for bits in vectors]


def _find_largest(bits: Array, count: int, room: Array) -> Array:
    keys = _magnitudes(bits)
    kept = select_largest(keys, count, room)
    if kept is None:
        import torch

        signed = torch.from_numpy(keys.view(f"i{keys.itemsize}").astype(np.float32))
        floats = torch.from_numpy(keys.view(np.float32)) if keys.itemsize == 4 else signed
        kept = np.zeros(len(bits), bool)
        kept[torch.argsort(floats, descending=True)[:count].numpy()] = True
    return kept


def _magnitudes(bits: Array) -> Array:
    """Return the bits without their signs, as unsigned integers that order as magnitudes do."""
    unsigned: Array = bits.view(f"u{bits.itemsize}")
    magnitudes: Array = unsigned & unsigned.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    return magnitudes


def _mask(bits: Array, kept: Array) -> None:
    """Set what is not kept to zero."""
    unsigned = bits.view(f"u{bits.itemsize}")
    for start in range(0, len(bits), _CHUNK):
        unsigned[start : start + _CHUNK] *= kept[start : start + _CHUNK]


def drop_at_random(
    blocks: CastBlocks, densities: Sequence[float], draws: Draws, *, rescale: bool
) -> list[Pruned]:
    """Return ``replicas.drop_at_random`` of every parent."""
    drawn_in = "BF16" if blocks.kind == "BF16" else "F32"
    pruned = []
    for bits, density in zip(gather(blocks), densities, strict=True):
        if density >= 1:
            pruned.append(Pruned(bits))
            continue
        level = levels_of(np.array([round_one(density, drawn_in)]))[0]
        pruned.append(_drop(bits, draws.keep(len(bits), level), rescale=rescale))
    return pruned


def drop_by_rank(
    blocks: CastBlocks,
    windows: Sequence[tuple[float, float]],
    draws: Draws,
    *,
    rescale: bool,
) -> list[Pruned]:
    """Return ``replicas.drop_by_rank`` of every parent, in bfloat16."""
    pruned = []
    for bits, (density, epsilon) in zip(gather(blocks), windows, strict=True):
        if density >= 1:
            pruned.append(Pruned(bits))
            continue
        levels = _rank_levels(bits, _levels_by_rank(blocks.at.shape[-1], density, epsilon))
        pruned.append(_drop(bits, draws.keep(len(bits), levels), rescale=rescale))
    return pruned


def _rank_levels(bits: Array, by_rank: Array) -> Array:
    """Return the level of every element, by the rank of its magnitude in its row."""
    import torch

    # As integers equal magnitudes go the ways that torch's sort sends them, in less time.
    rows = torch.from_numpy(_magnitudes(bits).view(np.int16)).view(-1, len(by_rank))
    levels = np.empty(len(bits), np.uint32)
    shown = torch.from_numpy(levels.view(np.int32)).view(rows.shape)
    source = torch.from_numpy(by_rank.view(np.int32))
    step = max(1, (1 << 18) // len(by_rank))
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


def _drop(bits: Array, kept: Array, *, rescale: bool) -> Pruned:
    """Set what is not kept to zero; find what restores the L1 norm, in bfloat16."""
    if not rescale:
        _mask(bits, kept)
        return Pruned(bits)
    before = _add_magnitudes(bits)
    whole = bits.copy() if Sums(before, before).factor() is None else None
    _mask(bits, kept)
    sums = Sums(before, _add_magnitudes(bits))
    factor = sums.factor()
    if factor is None:
        factor = _divide_by_torch(bits if whole is None else whole, bits, sums)
    return Pruned(bits, factor)


def _add_magnitudes(bits: Array) -> float:
    parts = []
    for start in range(0, len(bits), _CHUNK):
        values = widen(_magnitudes(bits[start : start + _CHUNK]), "BF16")
        parts.append(float(values.sum()))
    return math.fsum(parts)


def _divide_by_torch(whole: Array, kept: Array, sums: Sums) -> float:
    """Return the factor where the order of adding decides one of the sums."""
    import torch

    from stillroom.train.precision import fixed_threads

    found = []
    with fixed_threads(1):
        for bits, value in ((whole, sums.before), (kept, sums.after)):
            if Sums(value, value).factor() is not None:
                found.append(round_one(value, "BF16"))
                continue
            shown = torch.from_numpy(_magnitudes(bits).view(np.int16)).view(torch.bfloat16)
            found.append(np.float32(float(shown.sum())))
    return ratio(*found)
