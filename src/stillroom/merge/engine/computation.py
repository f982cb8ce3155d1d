"""Computed tensors: rows of a tokenizer transplant by orthogonal matching pursuit (OMP), and zeros.

Router gates of a mixture come from ``merge.engine.gates``. A token that only the donor of a
transplant has is approximated, in the donor's embeddings, by a sum of few tokens that both models
have; the same sum of the target's embeddings is its new row. The pursuit keeps one orthonormal
basis per signal (Gram-Schmidt, applied twice) and solves for the coefficients once, at the end.

Source: Goddard and Fernandes Neto 2025, Training-free tokenizer transplantation via orthogonal
matching pursuit, arXiv:2506.06607.
Source: Pati et al. 1993, Orthogonal matching pursuit; Rubinstein et al. 2008 for many signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.dtypes import BIT_TYPES, narrow, widen
from stillroom.merge.interfaces import Array
from stillroom.merge.planning.inputs import MergeSource
from stillroom.merge.planning.plan import (
    GateRows,
    MergePlan,
    PlannedTensor,
    TokenMatch,
    TransplantedTable,
)

__all__ = ["TensorComputer", "orthogonal_matching_pursuit"]

_BLOCK_ROWS = 1024
_STILL = 1e-6
_DEPENDENT = 1e-7
_BYTES = 48 << 20


class TensorComputer:
    """Computes the tensors of a plan that are in no source.

    ``notes`` describes the approximations, JSON values by tensor.
    """

    def __init__(self, plan: MergePlan, sources: Sequence[MergeSource], seed: int) -> None:
        """Create a computer; ``sources`` are those of the plan, ``seed`` is that of drawn gates."""
        self.plan, self.sources, self.seed = plan, sources, seed
        self.notes: dict[str, Any] = {}
        self._gates: Array | None = None

    def blocks(self, tensor: PlannedTensor) -> Iterator[Array]:
        """Yield a computed tensor's rows in the storage type, in order."""
        match tensor.computed:
            case GateRows(layer, start, stop):
                yield narrow(self._compute_gates()[layer][start:stop], tensor.dtype)
            case TransplantedTable() as table:
                yield from self._transplant(tensor, table)
            case _:
                yield narrow(np.zeros(tensor.shape, np.float32), tensor.dtype)

    def _compute_gates(self) -> Array:
        """Return all gates, (layers, experts and the shared one, width), computed once."""
        from stillroom.merge.engine.gates import compute_gates, compute_mergekit_gates

        gates = self.plan.gates
        if gates is None:
            raise ValueError("the plan has no gates")
        if self._gates is None:
            compute = compute_mergekit_gates if gates.is_mergekit else compute_gates
            base = self.sources[0].checkpoint
            self._gates = compute(base, gates.prompts, gates.layers, gates.mode, self.seed)
        return self._gates

    def _transplant(self, tensor: PlannedTensor, table: TransplantedTable) -> Iterator[Array]:
        if self.plan.match is None:
            raise ValueError("the plan has no transplant")
        target, donor = (source.checkpoint for source in self.sources)
        rows = _TransplantedRows(self.plan.match, tensor.shape[0], donor, target, table)
        for bits in rows.blocks():
            is_stored = rows.kind == tensor.dtype
            yield bits if is_stored else narrow(widen(bits, rows.kind, np.float64), tensor.dtype)
        if rows.residuals:
            self.notes[tensor.name] = {
                "median": float(np.median(rows.residuals)),
                "largest": float(max(rows.residuals)),
            }


class _TransplantedRows:
    """One token table of the result, computed in blocks."""

    def __init__(
        self,
        match: TokenMatch,
        size: int,
        donor: Checkpoint,
        target: Checkpoint,
        table: TransplantedTable,
    ) -> None:
        self.match, self.size = match, size
        self.kind = target.entry(table.target).dtype
        self.stored = _read_all(target, table.target)
        self.residuals: list[float] = []
        self.donor_table: Array | None = None
        if table.donor:
            self.donor_kind = donor.entry(table.donor).dtype
            self.donor_table = _read_all(donor, table.donor)
            self.atoms = widen(self.donor_table[match.dictionary], self.donor_kind)
        shared = widen(self.stored[match.rows[match.dictionary]], self.kind, np.float64)
        self.mean = shared.mean(0)

    def blocks(self) -> Iterator[Array]:
        """Yield the table's rows in the storage type, in order."""
        for start in range(0, self.size, _BLOCK_ROWS):
            index = np.arange(start, min(start + _BLOCK_ROWS, self.size))
            rows = self.match.rows[index]
            values = np.zeros((index.size, *self.stored.shape[1:]), self.stored.dtype)
            values[rows >= 0] = self.stored[rows[rows >= 0]]
            new = np.flatnonzero((rows < 0) & self.match.named[index])
            if new.size:
                values[new] = narrow(self._compose(index[new]), self.kind)
            values[~self.match.named[index]] = narrow(self.mean, self.kind)
            yield values

    def _compose(self, index: Array) -> Array:
        """Approximate the donor's rows by shared tokens; return the target's rows of the sums."""
        if self.donor_table is None:
            return np.broadcast_to(self.mean, (index.size, *self.mean.shape))
        signals = np.zeros((index.size, self.atoms.shape[1]), np.float32)
        known = index < len(self.donor_table)
        signals[known] = widen(self.donor_table[index[known]], self.donor_kind)
        atom_indices, shares, residuals = orthogonal_matching_pursuit(
            self.atoms, signals, self.match.k
        )
        self.residuals += residuals.tolist()
        rows = self.match.rows[self.match.dictionary[atom_indices]]
        values = [
            share @ widen(self.stored[row], self.kind, np.float64)
            for share, row in zip(shares, rows, strict=True)
        ]
        return np.stack(values)


def _read_all(checkpoint: Checkpoint, name: str) -> Array:
    entry = checkpoint.entry(name)
    data = checkpoint.read(name, 0, entry.shape[0])
    return np.frombuffer(data, BIT_TYPES[entry.dtype]).reshape(entry.shape)


def orthogonal_matching_pursuit(atoms: Array, signals: Array, k: int) -> tuple[Array, Array, Array]:
    """Approximate each signal by a sum of at most ``k`` atoms.

    Each step adds the atom most correlated with the residual; all coefficients are then the
    least-squares ones.

    Args:
        atoms: (N, D) float32; zero rows are never chosen.
        signals: (B, D) float32.
        k: Maximum number of atoms per signal, at most N and D.

    Returns:
        Indices of the atoms, (B, k) int64; their coefficients, (B, k) float64, zero if fewer were
        needed; and the relative residual of each signal, (B,) float64.
    """
    lengths = np.linalg.norm(atoms, axis=1)
    units = atoms / np.where(lengths > 0, lengths, 1)[:, None]
    k = min(k, *atoms.shape)
    step = max(1, _BYTES // (4 * len(atoms) + 8 * k * atoms.shape[1]))
    batches = [
        _pursue_batch(units, lengths, signals[start : start + step], k)
        for start in range(0, len(signals), step)
    ]
    indices, shares, residuals = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return indices, shares, residuals


def _pursue_batch(
    units: Array, lengths: Array, signals: Array, k: int
) -> tuple[Array, Array, Array]:
    """Pursue one batch; ``units`` are the normalized atoms."""
    count, width = signals.shape
    rows = np.arange(count)
    residual: Array = signals.astype(np.float64)
    size = np.linalg.norm(residual, axis=1)
    indices = np.zeros((count, k), np.int64)
    basis = np.zeros((count, k, width))
    factor: Array = np.broadcast_to(np.eye(k), (count, k, k)).copy()
    inner = np.zeros((count, k))
    for step in range(k):
        scores = np.abs(residual.astype(np.float32) @ units.T)
        scores[rows[:, None], indices[:, :step]] = -1
        indices[:, step] = scores.argmax(1)
        atom: Any = units[indices[:, step]].astype(np.float64)
        for _ in range(2):  # one pass leaves rounding errors that grow with every atom
            along = np.einsum("bsd,bd->bs", basis[:, :step], atom)
            factor[:, :step, step] += along
            atom -= np.einsum("bs,bsd->bd", along, basis[:, :step])
        length = np.linalg.norm(atom, axis=1)
        is_new = (length > _DEPENDENT) & (np.linalg.norm(residual, axis=1) > _STILL * size)
        # A redundant atom gets coefficient 0: zero in the basis, one on the diagonal.
        basis[:, step] = np.where(is_new, 1 / np.where(length > 0, length, 1), 0)[:, None] * atom
        factor[:, step, step] = np.where(is_new, length, 1)
        inner[:, step] = np.einsum("bd,bd->b", basis[:, step], residual)
        residual -= inner[:, step, None] * basis[:, step]
        if not is_new.any():
            break
    shares = np.linalg.solve(factor, inner[:, :, None])[:, :, 0]
    shares /= np.where(lengths > 0, lengths, 1)[indices]
    return indices, shares, np.linalg.norm(residual, axis=1) / np.where(size > 0, size, 1)
