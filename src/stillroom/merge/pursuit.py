"""Orthogonal matching pursuit: many vectors as sums of few atoms, all at once.

Source: Pati et al. 1993, Orthogonal matching pursuit; Rubinstein et al. 2008 for many signals.
Ours keeps one orthonormal basis a signal (Gram-Schmidt, done twice) and solves for coefficients
once, at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stillroom.merge.method import Array

__all__ = ["pursue"]

_STILL = 1e-6
_DEPENDENT = 1e-7
_BYTES = 48 << 20


def pursue(atoms: Array, signals: Array, k: int) -> tuple[Array, Array, Array]:
    """Write each signal as a sum of at most ``k`` atoms.

    At each step the atom joins that lies nearest to what is left; all coefficients are then the
    least squares ones.

    Args:
        atoms: (N, D) float32; rows of zeros are never chosen.
        signals: (B, D) float32.
        k: Most atoms a signal, at most N and D.

    Returns:
        Which atoms, (B, k) int64; their coefficients, (B, k) float64, zero where fewer were needed;
        and what is left of each signal, as a share of its length, (B,) float64.
    """
    lengths = np.linalg.norm(atoms, axis=1)
    units = atoms / np.where(lengths > 0, lengths, 1)[:, None]
    k = min(k, *atoms.shape)
    step = max(1, _BYTES // (4 * len(atoms) + 8 * k * atoms.shape[1]))
    found = [
        _pursue(units, lengths, signals[start : start + step], k)
        for start in range(0, len(signals), step)
    ]
    chosen, shares, left = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return chosen, shares, left


def _pursue(units: Array, lengths: Array, signals: Array, k: int) -> tuple[Array, Array, Array]:
    """Pursue one batch; ``units`` are the atoms at length 1."""
    count, width = signals.shape
    rows = np.arange(count)
    left: Array = signals.astype(np.float64)
    size = np.linalg.norm(left, axis=1)
    chosen = np.zeros((count, k), np.int64)
    basis = np.zeros((count, k, width))
    factor: Array = np.broadcast_to(np.eye(k), (count, k, k)).copy()
    inner = np.zeros((count, k))
    for step in range(k):
        scores = np.abs(left.astype(np.float32) @ units.T)
        scores[rows[:, None], chosen[:, :step]] = -1
        chosen[:, step] = scores.argmax(1)
        atom: Any = units[chosen[:, step]].astype(np.float64)
        for _ in range(2):  # once leaves rounding errors that grow with every atom
            along = np.einsum("bsd,bd->bs", basis[:, :step], atom)
            factor[:, :step, step] += along
            atom -= np.einsum("bs,bsd->bd", along, basis[:, :step])
        length = np.linalg.norm(atom, axis=1)
        is_new = (length > _DEPENDENT) & (np.linalg.norm(left, axis=1) > _STILL * size)
        # What adds nothing gets coefficient 0: a zero in the basis, a one on the diagonal.
        basis[:, step] = np.where(is_new, 1 / np.where(length > 0, length, 1), 0)[:, None] * atom
        factor[:, step, step] = np.where(is_new, length, 1)
        inner[:, step] = np.einsum("bd,bd->b", basis[:, step], left)
        left -= inner[:, step, None] * basis[:, step]
        if not is_new.any():
            break
    shares = np.linalg.solve(factor, inner[:, :, None])[:, :, 0]
    shares /= np.where(lengths > 0, lengths, 1)[chosen]
    return chosen, shares, np.linalg.norm(left, axis=1) / np.where(size > 0, size, 1)
