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

__all__ = ["BLOCK", "hadamard", "mix_rows", "mixed_width", "mixing_of"]

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
    blocks = (padded[:, order] * signs).reshape(count, len(order) // BLOCK, BLOCK)
    return np.asarray((blocks @ hadamard()).reshape(count, len(order)))


@lru_cache(maxsize=8)
def mixing_of(width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a permutation and signs that depend on the width alone, on any machine."""
    padded = mixed_width(width)
    drawn = hashlib.shake_128(f"stillroom sketch {width}".encode()).digest(8 * padded)
    numbers = np.frombuffer(drawn, dtype="<u8")
    signs = np.where(numbers & 1, 1.0, -1.0).astype(np.float32)
    return np.argsort(numbers, kind="stable"), signs


@lru_cache(maxsize=1)
def hadamard() -> NDArray[np.float32]:
    """Return the Hadamard matrix of a block, (64, 64), of ones and minus ones."""
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < BLOCK:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
