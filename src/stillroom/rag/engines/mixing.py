"""Mixing: a fixed rotation that spreads what a vector says evenly over its numbers.

Signs and a permutation that follow from the width alone, then Hadamard blocks of 64: dot products
stay as they are, no number carries much more than another, and codes of few bits lose little.

Source: Ailon and Chazelle 2006, doi:10.1145/1132516.1132597.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "mix_rows", "mixed_width", "mixing_of"]

BLOCK = 64


def mixed_width(width: int) -> int:
    """Return how many numbers a vector of ``width`` has once it is mixed: whole blocks."""
    return -(-width // BLOCK) * BLOCK


def mix_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (N, D) rotated, (N, ``mixed_width(D)``), with 8 times their length."""
    count, width = vectors.shape
    order, signs = mixing_of(width)
    padded = np.zeros((count, len(order)), dtype=np.float32)
    padded[:, :width] = vectors
    blocks = np.ascontiguousarray((padded[:, order] * signs).reshape(-1, BLOCK).T)
    return np.ascontiguousarray(_hadamard(blocks).T).reshape(count, len(order))


def _hadamard(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Hadamard transform of every column of (64, N); overwrites what it is given.

    By sums and differences alone: a product of matrices rounds a row otherwise when it stands among
    others, and a vector's code must depend on nothing but the vector.
    """
    spare = np.empty_like(blocks)
    half = 1
    while half < BLOCK:
        pairs = blocks.reshape(BLOCK // half // 2, 2, half, blocks.shape[1])
        out = spare.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        blocks, spare = spare, blocks
        half *= 2
    return blocks


@lru_cache(maxsize=8)
def mixing_of(width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a permutation and signs that depend on the width alone, on any machine."""
    padded = mixed_width(width)
    drawn = hashlib.shake_128(f"stillroom sketch {width}".encode()).digest(8 * padded)
    numbers = np.frombuffer(drawn, dtype="<u8")
    signs = np.where(numbers & 1, 1.0, -1.0).astype(np.float32)
    return np.argsort(numbers, kind="stable"), signs
