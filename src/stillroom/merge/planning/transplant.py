"""Tokenizer transplantation by orthogonal matching pursuit.

A token that only the donor has is approximated, in the donor's embeddings, by a sum of few tokens
that both models have; the same sum of the target's embeddings is its new row. Rows of shared tokens
are copied, bit for bit. Differs: tokens are also matched by their bytes, and special tokens by
their role. The pursuit keeps one orthonormal basis per signal (Gram-Schmidt, applied twice) and
solves for the coefficients once, at the end.

Source: Goddard and Fernandes Neto 2025, Training-free tokenizer transplantation via orthogonal
matching pursuit, arXiv:2506.06607.
Source: Pati et al. 1993, Orthogonal matching pursuit; Rubinstein et al. 2008 for many signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.dtypes import BIT_TYPES, narrow, widen
from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError
from stillroom.merge.interfaces import Array
from stillroom.merge.planning.inputs import MergeSource, TensorRules
from stillroom.merge.planning.plan import SAFETENSORS_DTYPES, MergePlan, PlannedTensor, SourceTensor
from stillroom.merge.planning.token_plan import TokenPlan, plan_tokenizer
from stillroom.merge.settings import TokenizerSettings

if TYPE_CHECKING:
    from stillroom.merge.engine.merge import Merge

__all__ = [
    "TransplantPlanner",
    "orthogonal_matching_pursuit",
    "plan_transplant",
]


_BLOCK_ROWS = 1024


_HEADS = ("lm_head", "embed_out", "output", "predictions", "vocab_projector")


_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def plan_transplant(
    base: MergeSource | None, parents: Sequence[MergeSource], rules: TensorRules, *, k: int
) -> MergePlan:
    """Return the plan of a transplant: the base's tensors with new token tables.

    Args:
        base: The model that gets a new tokenizer.
        parents: The model that gives the tokenizer.
        rules: Storage type.
        k: Maximum number of shared tokens per new token.

    Raises:
        CheckpointError: If a tokenizer is missing, or the two have too little in common.
    """
    if base is None:
        from stillroom.merge.interfaces import missing_base_error

        raise missing_base_error("transplant")
    planner = TransplantPlanner(base, parents[0], rules, k)
    tensors = tuple(planner.tensors())
    return MergePlan(
        "transplant",
        (base.name, parents[0].name),
        tensors,
        (),
        planner.plan.adapt_config(base.checkpoint.config, donor=1),
        base.checkpoint.size_bytes + planner.donor_bytes,
        1,
        planner.plan,
        tuple(planner.notes()),
        3 * planner.table_bytes,
    )


@dataclass(frozen=True)
class TransplantPlanner:
    """Maps rows of both models to rows of the result."""

    target: MergeSource
    donor: MergeSource
    rules: TensorRules
    k: int

    @cached_property
    def plan(self) -> TokenPlan:
        """Origin of each row of the new embeddings."""
        settings = TokenizerSettings.model_validate({"source": "base"})
        folders = [source.checkpoint.folder for source in (self.donor, self.target)]
        return plan_tokenizer(settings, folders[0], folders[1:])

    @cached_property
    def match(self) -> _TokenMatch:
        """Tokens in both vocabularies."""
        return _match_tokens(self.plan, self.donor.checkpoint, self.target.checkpoint)

    @cached_property
    def tables(self) -> dict[str, str]:
        """Token tables of the target, with the donor's counterparts, if any."""
        target = self.target.checkpoint
        tables = {
            name: _find_donor(name, self.plan, self.donor.checkpoint)
            for name in target.names()
            if self.plan.is_token_table(name, target.shape(name), 1)
            and target.entry(name).dtype in FLOATS
        }
        if not tables:
            raise _transplant_error("the target has no tensor with one row per token", target)
        return tables

    @property
    def tokens(self) -> int:
        """Number of tokens of the donor's vocabulary."""
        return sum(token is not None for token in self.plan.vocabulary.tokens)

    @property
    def shared(self) -> int:
        """Number of tokens found in both vocabularies by their text."""
        rows = self.match.rows[self.match.named]
        return int((rows >= 0).sum()) - len(self.match.by_role)

    @property
    def new(self) -> int:
        """Number of tokens that the target does not have."""
        return int((self.match.rows[self.match.named] < 0).sum())

    @property
    def donor_bytes(self) -> int:
        """Bytes of the donor's embedding and head."""
        names = {name for name in self.tables.values() if name}
        return sum(self.donor.checkpoint.entry(name).size_bytes for name in names)

    @property
    def table_bytes(self) -> int:
        """Bytes of the largest table and its counterpart, which are held in memory."""
        sizes = [self.target.checkpoint.entry(name).size_bytes for name in self.tables]
        return max(sizes) + self.donor_bytes

    def tensors(self) -> Iterator[PlannedTensor]:
        """Yield every tensor of the result, by name."""
        target = self.target.checkpoint
        dtype = SAFETENSORS_DTYPES.get(self.rules.dtype or "", "")
        for name in target.names():
            entry = target.entry(name)
            stored = dtype if dtype and entry.dtype in FLOATS else entry.dtype
            if name in self.tables:
                shape = (self.plan.size, *entry.shape[1:])
                make = partial(self._make, name, stored)
                yield PlannedTensor(name, stored, shape, None, (), is_placed=True, made=make)
            else:
                home = (SourceTensor(0, name),)
                yield PlannedTensor(name, stored, entry.shape, None, home, is_placed=True)

    def notes(self) -> Iterator[str]:
        """Yield the notes of the plan."""
        roles = f", {len(self.match.by_role)} by their role" if self.match.by_role else ""
        yield f"{self.target.name} gets the tokenizer of {self.donor.name}: {self.tokens} tokens"
        yield (
            f"{self.shared} rows are copied{roles}; {self.new} are written as sums of at most "
            f"{self.k} others"
        )

    def _make(self, name: str, stored: str, merge: Merge) -> Iterator[Array]:
        table = _TokenTable(
            self.plan,
            self.match,
            self.donor.checkpoint,
            self.target.checkpoint,
            name,
            self.tables[name],
            self.k,
        )
        kind = self.target.checkpoint.entry(name).dtype
        for bits in table.blocks():
            yield bits if kind == stored else narrow(widen(bits, kind, np.float64), stored)
        if table.residuals:
            merge.notes[name] = {
                "median": float(np.median(table.residuals)),
                "largest": float(max(table.residuals)),
            }


@dataclass(frozen=True, slots=True)
class _TokenMatch:
    """The target's row of each donor row, or -1; and the rows with a token."""

    rows: Array
    named: Array
    dictionary: Array
    by_role: tuple[str, ...]


def _match_tokens(plan: TokenPlan, donor: Checkpoint, target: Checkpoint) -> _TokenMatch:
    tokens = plan.vocabulary.tokens
    named = np.zeros(plan.size, bool)
    named[: len(tokens)] = [token is not None for token in tokens]
    rows = np.where(named, plan.own_rows[1], -1).astype(np.int64)
    # Tokens without a row in the donor's embeddings cannot be used.
    dictionary = np.flatnonzero((rows >= 0) & (plan.own_rows[0] >= 0))
    by_role = []
    for role in _ROLES:
        donor_row, target_row = _first(donor.config.get(role)), _first(target.config.get(role))
        if donor_row is None or target_row is None or not 0 <= target_row < plan.sources[1].rows:
            continue
        if 0 <= donor_row < plan.size and named[donor_row] and rows[donor_row] < 0:
            rows[donor_row] = target_row
            by_role.append(str(tokens[donor_row]))
    if not dictionary.size:
        raise _transplant_error("the two tokenizers have no token in common", target)
    return _TokenMatch(rows, named, dictionary, tuple(by_role))


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None


def _find_donor(name: str, plan: TokenPlan, donor: Checkpoint) -> str:
    """Return the donor's table of the same role; for a tied head, its input embedding."""
    listed = [
        candidate
        for candidate in donor.names()
        if len(donor.shape(candidate)) == 2
        and donor.entry(candidate).dtype in FLOATS
        and plan.is_token_table(candidate, donor.shape(candidate), 0)
    ]
    if name.endswith("bias") or not listed:
        return ""
    same = [candidate for candidate in listed if _is_head(candidate) == _is_head(name)]
    return (same or listed)[0]


def _is_head(name: str) -> bool:
    return any(part in name for part in _HEADS)


class _TokenTable:
    """One token table of the result, computed in blocks."""

    def __init__(
        self,
        plan: TokenPlan,
        match: _TokenMatch,
        donor: Checkpoint,
        target: Checkpoint,
        name: str,
        donor_name: str,
        k: int,
    ) -> None:
        self.match, self.k, self.size = match, k, plan.size
        self.kind = target.entry(name).dtype
        self.stored = _read_all(target, name)
        self.residuals: list[float] = []
        self.donor_table: Array | None = None
        if donor_name:
            self.donor_kind = donor.entry(donor_name).dtype
            self.donor_table = _read_all(donor, donor_name)
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
        atom_indices, shares, residuals = orthogonal_matching_pursuit(self.atoms, signals, self.k)
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


def _transplant_error(problem: str, target: Checkpoint) -> CheckpointError:
    return CheckpointError(
        problem,
        code="merge.transplant",
        where=str(target.folder),
        expected="two models whose tokenizers share tokens",
        next="check that both folders have a tokenizer.json and a config.json with vocab_size",
    )


_STILL = 1e-6


_DEPENDENT = 1e-7


_BYTES = 48 << 20


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
