"""Tokenizer transplantation by orthogonal matching pursuit.

Source: Goddard and Fernandes Neto 2025, Training-free tokenizer transplantation via orthogonal
matching pursuit, arXiv:2506.06607: a token that only the donor has is, among the donor's
embeddings, a sum of few tokens that both have; the same sum of the target's embeddings is its new
row. Rows of shared tokens are copied, bit for bit. Ours also matches tokens by the bytes they stand
for, and special tokens by their role.

Source: Pati et al. 1993, Orthogonal matching pursuit; Rubinstein et al. 2008 for many signals.
Ours keeps one orthonormal basis a signal (Gram-Schmidt, done twice) and solves for coefficients
once, at the end.
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
    """Return the plan of a transplant: the base's tensors, its token tables made anew.

    Args:
        base: The model that gets another tokenizer.
        parents: The one that gives it.
        rules: Storage type.
        k: Most shared tokens that a new one is written as.

    Raises:
        CheckpointError: If a tokenizer is missing, or the two have too little in common.
    """
    if base is None:
        from stillroom.merge.interfaces import missing_base_error

        raise missing_base_error("transplant")
    found = TransplantPlanner(base, parents[0], rules, k)
    tensors = tuple(found.tensors())
    return MergePlan(
        "transplant",
        (base.name, parents[0].name),
        tensors,
        (),
        found.plan.adapt_config(base.checkpoint.config, donor=1),
        base.checkpoint.size_bytes + found.donor_bytes,
        1,
        found.plan,
        tuple(found.notes()),
        3 * found.table_bytes,
    )


@dataclass(frozen=True)
class TransplantPlanner:
    """Which rows of which model become which rows of the result."""

    target: MergeSource
    donor: MergeSource
    rules: TensorRules
    k: int

    @cached_property
    def plan(self) -> TokenPlan:
        """Where each row of the new embeddings comes from."""
        settings = TokenizerSettings.model_validate({"source": "base"})
        folders = [each.checkpoint.folder for each in (self.donor, self.target)]
        return plan_tokenizer(settings, folders[0], folders[1:])

    @cached_property
    def match(self) -> _TokenMatch:
        """The tokens that both vocabularies hold."""
        return _match_tokens(self.plan, self.donor.checkpoint, self.target.checkpoint)

    @cached_property
    def tables(self) -> dict[str, str]:
        """The target's token tables, each with the donor's of the same role, or nothing."""
        target = self.target.checkpoint
        found = {
            name: _find_donor(name, self.plan, self.donor.checkpoint)
            for name in target.names()
            if self.plan.is_token_table(name, target.shape(name), 1)
            and target.entry(name).dtype in FLOATS
        }
        if not found:
            raise _transplant_error("the target has no tensor with a row a token", target)
        return found

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
        """The bytes of the largest table and its counterpart, which are held."""
        own = [self.target.checkpoint.entry(name).size_bytes for name in self.tables]
        return max(own) + self.donor_bytes

    def tensors(self) -> Iterator[PlannedTensor]:
        """Yield every tensor of the result, by name."""
        target = self.target.checkpoint
        asked = SAFETENSORS_DTYPES.get(self.rules.dtype or "", "")
        for name in target.names():
            entry = target.entry(name)
            stored = asked if asked and entry.dtype in FLOATS else entry.dtype
            if name in self.tables:
                shape = (self.plan.size, *entry.shape[1:])
                make = partial(self._make, name, stored)
                yield PlannedTensor(name, stored, shape, None, (), is_placed=True, made=make)
            else:
                home = (SourceTensor(0, name),)
                yield PlannedTensor(name, stored, entry.shape, None, home, is_placed=True)

    def notes(self) -> Iterator[str]:
        """Yield what the plan says of it."""
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
        if table.left:
            merge.notes[name] = {
                "median": float(np.median(table.left)),
                "largest": float(max(table.left)),
            }


@dataclass(frozen=True, slots=True)
class _TokenMatch:
    """Which row of the target each row of the donor is, or -1; and which rows have a token."""

    rows: Array
    named: Array
    dictionary: Array
    by_role: tuple[str, ...]


def _match_tokens(plan: TokenPlan, donor: Checkpoint, target: Checkpoint) -> _TokenMatch:
    tokens = plan.vocabulary.tokens
    named = np.zeros(plan.size, bool)
    named[: len(tokens)] = [token is not None for token in tokens]
    rows = np.where(named, plan.own[1], -1).astype(np.int64)
    # A token without a row among the donor's embeddings says nothing.
    dictionary = np.flatnonzero((rows >= 0) & (plan.own[0] >= 0))
    by_role = []
    for role in _ROLES:
        ours, theirs = _first(donor.config.get(role)), _first(target.config.get(role))
        if ours is None or theirs is None or not 0 <= theirs < plan.sources[1].rows:
            continue
        if 0 <= ours < plan.size and named[ours] and rows[ours] < 0:
            rows[ours] = theirs
            by_role.append(str(tokens[ours]))
    if not dictionary.size:
        raise _transplant_error("the two tokenizers have no token in common", target)
    return _TokenMatch(rows, named, dictionary, tuple(by_role))


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None


def _find_donor(name: str, plan: TokenPlan, donor: Checkpoint) -> str:
    """Return the donor's table of the same role; its input embedding where a head is tied."""
    listed = [
        other
        for other in donor.names()
        if len(donor.shape(other)) == 2
        and donor.entry(other).dtype in FLOATS
        and plan.is_token_table(other, donor.shape(other), 0)
    ]
    if name.endswith("bias") or not listed:
        return ""
    same = [other for other in listed if _is_head(other) == _is_head(name)]
    return (same or listed)[0]


def _is_head(name: str) -> bool:
    return any(word in name for word in _HEADS)


class _TokenTable:
    """One token table of the result, made block by block."""

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
        self.left: list[float] = []
        self.theirs: Array | None = None
        if donor_name:
            self.theirs_kind = donor.entry(donor_name).dtype
            self.theirs = _read_all(donor, donor_name)
            self.atoms = widen(self.theirs[match.dictionary], self.theirs_kind)
        shared = widen(self.stored[match.rows[match.dictionary]], self.kind, np.float64)
        self.mean = shared.mean(0)

    def blocks(self) -> Iterator[Array]:
        """Yield the table's rows as stored, first to last."""
        for start in range(0, self.size, _BLOCK_ROWS):
            at = np.arange(start, min(start + _BLOCK_ROWS, self.size))
            rows = self.match.rows[at]
            made = np.zeros((at.size, *self.stored.shape[1:]), self.stored.dtype)
            made[rows >= 0] = self.stored[rows[rows >= 0]]
            new = np.flatnonzero((rows < 0) & self.match.named[at])
            if new.size:
                made[new] = narrow(self._compose(at[new]), self.kind)
            made[~self.match.named[at]] = narrow(self.mean, self.kind)
            yield made

    def _compose(self, at: Array) -> Array:
        """Return new rows: the donor's, written in shared tokens, in the target's words."""
        if self.theirs is None:
            return np.broadcast_to(self.mean, (at.size, *self.mean.shape))
        signals = np.zeros((at.size, self.atoms.shape[1]), np.float32)
        known = at < len(self.theirs)
        signals[known] = widen(self.theirs[at[known]], self.theirs_kind)
        chosen, shares, left = orthogonal_matching_pursuit(self.atoms, signals, self.k)
        self.left += left.tolist()
        rows = self.match.rows[self.match.dictionary[chosen]]
        made = [
            share @ widen(self.stored[row], self.kind, np.float64)
            for share, row in zip(shares, rows, strict=True)
        ]
        return np.stack(made)


def _read_all(checkpoint: Checkpoint, name: str) -> Array:
    entry = checkpoint.entry(name)
    data = checkpoint.read(name, 0, entry.shape[0])
    return np.frombuffer(data, BIT_TYPES[entry.dtype]).reshape(entry.shape)


def _transplant_error(what: str, target: Checkpoint) -> CheckpointError:
    return CheckpointError(
        what,
        code="merge.transplant",
        where=str(target.folder),
        expected="two models whose tokenizers share tokens",
        next="check that both folders hold a tokenizer.json and a config.json with vocab_size",
    )


_STILL = 1e-6


_DEPENDENT = 1e-7


_BYTES = 48 << 20


def orthogonal_matching_pursuit(atoms: Array, signals: Array, k: int) -> tuple[Array, Array, Array]:
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
        _pursue_batch(units, lengths, signals[start : start + step], k)
        for start in range(0, len(signals), step)
    ]
    chosen, shares, left = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return chosen, shares, left


def _pursue_batch(
    units: Array, lengths: Array, signals: Array, k: int
) -> tuple[Array, Array, Array]:
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
