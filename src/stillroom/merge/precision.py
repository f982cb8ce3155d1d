"""The error of a merge's arithmetic: some blocks are made again in float64 and compared.

The first block of some tensors, drawn by name. What is stored is compared with what float64 gives;
beside it stands the least error that the storage type allows, so that what arithmetic added shows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from stillroom.checkpoints.numbers import narrow, widen
from stillroom.merge.method import Array, Block

__all__ = ["Squares", "is_sampled", "measure_error", "summarize"]

Squares = tuple[float, float, float]
"""Squared sums over a block: error as stored, least error of the storage type, size."""

_ONE_IN = 16


def is_sampled(name: str) -> bool:
    """Return whether a tensor's first block is made again."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % _ONE_IN == 0


def measure_error(bits: Array, kind: str, exact: Array, block: Block) -> Squares:
    """Return the squared errors of one block.

    Args:
        bits: The block as it is stored.
        kind: Its storage type.
        exact: The block made in float64.
        block: What it was made of; the size is that of the change from the base, where there is
            one.
    """
    least = widen(narrow(exact, kind), kind, np.float64)
    size = exact if block.base is None else exact - block.base
    stored = widen(bits, kind, np.float64)
    return _square(stored - exact), _square(least - exact), _square(size)


def summarize(parts: Iterable[Squares]) -> dict[str, Any] | None:
    """Return the relative errors over all blocks that were made again; None where none was."""
    listed = list(parts)
    sums = [math.fsum(column) for column in zip(*listed, strict=True)]
    if not listed or sums[2] == 0:
        return None
    stored, least = math.sqrt(sums[0] / sums[2]), math.sqrt(sums[1] / sums[2])
    return {"stored": stored, "least": least, "blocks": len(listed)}


def _square(values: Array) -> float:
    return float(np.square(values).sum())
