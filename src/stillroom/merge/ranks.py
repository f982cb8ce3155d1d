"""Random drops that spare what is large: probabilities by the rank of a magnitude in its row.

Ranking is one integer sort a row: a key holds the magnitude's upper bits and, below them, the place
in the row. So equal magnitudes rank by place, and so do those that differ by less than about one
part in 2**11, which moves a probability by no more than a step. The random number belongs to the
rank, not to the place, which spares a second permutation and is as independent of blocks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from stillroom.errors import RecipeError
from stillroom.merge.arithmetic import LEVELS, draw_levels, magnitude_bits, task_vectors
from stillroom.merge.method import Array, Block, Blocks, Place

__all__ = ["Shares", "check_window", "measure_rows", "prune_by_rank"]

# Of one vector that is a single row, what each element is multiplied with; else nothing.
Shares = list[float]
_NARROW = 1 << 12


def check_window(density: float, epsilon: float) -> None:
    """Refuse a window of probabilities that leaves 0 to 1.

    Raises:
        RecipeError: If so.
    """
    if not (density - epsilon > 0 and density + epsilon <= 1):
        raise RecipeError(
            f"a density of {density:g} with an epsilon of {epsilon:g} keeps elements with "
            f"probabilities from {density - epsilon:g} to {density + epsilon:g}",
            code="merge.window",
            where="method.epsilon",
            expected="density - epsilon over 0, and density + epsilon at most 1",
            next=f"an epsilon below {min(density, 1 - density):g}, or another density",
        )


def measure_rows(
    blocks: Blocks, method: str, windows: list[tuple[float, float]], *, rescale: bool
) -> list[Shares] | None:
    """Return the shares of a tensor that is one row, which blocks cut; of others None.

    Args:
        blocks: The tensor.
        method: Its name, for a missing base.
        windows: Density and epsilon of every parent.
        rescale: As in ``prune_by_rank``.

    Raises:
        RecipeError: If a window of probabilities leaves 0 to 1, or there is no base.
    """
    for density, epsilon in windows:
        check_window(density, epsilon)
    if len(blocks.at.shape) > 1:
        return None

    def vectors_of(block: Block) -> list[Array]:
        return [v.reshape(-1) for v in task_vectors(block.base, block.parents, method)[1]]

    rows = [np.concatenate(parts) for parts in zip(*blocks.each(vectors_of), strict=True)]
    return [
        _draw_shares(row[None], window, key, blocks.at, rescale=rescale)[0].tolist()
        for row, window, key in zip(rows, windows, blocks.at.keys, strict=False)
    ]


def prune_by_rank(
    vectors: list[Array],
    windows: list[tuple[float, float]],
    measured: list[Shares] | None,
    at: Place,
    *,
    rescale: bool,
) -> list[Array]:
    """Return vectors with elements dropped at random, small ones of a row more often.

    Args:
        vectors: One a parent, any shape; a row is the last dimension.
        windows: Of each the mean probability of being kept, and how far it is from that for the
            smallest (below) and largest (above) of a row.
        measured: What ``measure_rows`` returned.
        at: Where the block lies.
        rescale: Divide what is kept by the probability with which it was.
    """
    kept = []
    for number, (vector, window, key) in enumerate(zip(vectors, windows, at.keys, strict=True)):
        size = math.prod(vector.shape)
        if measured is not None:
            cut = measured[number][at.offset : at.offset + size]
            shares = np.asarray(cut, vector.dtype)
        elif size:
            rows = vector.reshape(-1, vector.shape[-1])
            shares = _draw_shares(rows, window, key, at, rescale=rescale)
        else:
            shares = np.zeros(0, vector.dtype)
        kept.append(vector * shares.reshape(vector.shape))
    return kept


def _draw_shares(
    rows: Array, window: tuple[float, float], key: str, at: Place, *, rescale: bool
) -> Array:
    """Return what each element is multiplied with: 0, or 1 over its probability; (rows, width)."""
    width = rows.shape[1]
    if not rows.size:
        return np.zeros(rows.shape, rows.dtype)
    last, factors = _find_shares(width, *window, rows.dtype, rescale=rescale)
    kept = factors * (draw_levels(rows.shape, key, at) <= last)
    places = _order(rows)
    places += (np.arange(len(rows), dtype=np.int64) * width)[:, None]
    shares = np.empty(rows.size, rows.dtype)
    shares[places.reshape(-1)] = kept.reshape(-1)
    return shares.reshape(rows.shape)


@lru_cache(maxsize=64)
def _find_shares(
    width: int, density: float, epsilon: float, dtype: np.dtype[Any], *, rescale: bool
) -> tuple[Array, Array]:
    """Return for every rank the largest draw that keeps, uint16, and what is then multiplied with.

    A model's rows have few widths, and its blocks are thousands.
    """
    levels = _find_levels(width, density, epsilon)
    factors = LEVELS / levels if rescale else np.ones(width)
    return (levels - 1).astype(np.uint16), factors.astype(dtype)


def _find_levels(width: int, density: float, epsilon: float) -> Array:
    """Return the probability of every rank, from the smallest up, in steps of 2**-16."""
    rising = np.arange(width) * (2.0 / (width - 1)) - 1 if width > 1 else np.zeros(1)
    return np.clip(np.rint((density + epsilon * rising) * LEVELS), 1, LEVELS)


def _order(rows: Array) -> Array:
    """Return the places of every row's elements from the smallest up, (rows, width), int64."""
    width = rows.shape[1]
    if width > _NARROW:
        bits = magnitude_bits(rows).reshape(rows.shape)
        wide = (bits.astype(np.int64) << 32) | np.arange(width)
        wide.sort(axis=-1)
        wide &= 0xFFFFFFFF
        return wide
    room = (width - 1).bit_length()
    # Without its sign bit a magnitude begins at the top of the key.
    keys = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32) << np.uint32(1)
    keys &= np.uint32(0xFFFFFFFF >> room << room)
    keys |= np.arange(width, dtype=np.uint32)
    keys.sort(axis=-1)
    keys &= np.uint32((1 << room) - 1)
    return keys.astype(np.int64)
