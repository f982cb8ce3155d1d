"""Transplant: give a model another tokenizer without training, so that it can be merged.

Source: Goddard and Fernandes Neto 2025, Training-free tokenizer transplantation via orthogonal
matching pursuit, arXiv:2506.06607: a token that only the donor has is, among the donor's
embeddings, a sum of few tokens that both have; the same sum of the target's embeddings is its new
row. Rows of shared tokens are copied, bit for bit. Ours also matches tokens by the bytes they stand
for, and special tokens by their role.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.header import FLOATS
from stillroom.checkpoints.numbers import BIT_TYPES, narrow, widen
from stillroom.errors import CheckpointError
from stillroom.merge.copying import read_blocks, write_blocks
from stillroom.merge.method import Array
from stillroom.merge.pursuit import pursue
from stillroom.merge.tokenizer import TokenizerSettings, TokenPlan, plan_tokenizer

__all__ = ["Transplanted", "transplant"]

_BLOCK_ROWS = 1024
_HEADS = ("lm_head", "embed_out", "output", "predictions", "vocab_projector")
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True, slots=True)
class Transplanted:
    """What a transplant did.

    Attributes:
        fingerprint: Of the written checkpoint.
        tokens: How many tokens it has.
        shared: How many of them the target had: these rows are copied.
        by_role: Special tokens that took the target's row of the same role (bos, eos, ...).
        written: How many rows were written as sums of others.
        left: By table, what these sums miss of the donor's rows, a share of their length: the
            median and the largest.
        meant: Tables without a counterpart (biases), whose new rows are the mean of the others.
    """

    fingerprint: str
    tokens: int
    shared: int
    by_role: tuple[str, ...]
    written: int
    left: dict[str, tuple[float, float]] = field(default_factory=dict)
    meant: tuple[str, ...] = ()


def transplant(
    donor: Checkpoint,
    target: Checkpoint,
    folder: Path,
    *,
    k: int = 64,
    shard_size: int = 5_000_000_000,
) -> Transplanted:
    """Write the target model with the donor's tokenizer.

    The embeddings of both are held in memory as they are stored; all else is streamed. Costs about
    ``tokens x shared x width x k`` multiplications.

    Args:
        donor: Gives the tokenizer, and what new tokens mean among its own.
        target: Gives everything else.
        folder: Where the result is written, atomically.
        k: Most shared tokens that a new one is written as.
        shard_size: Most bytes of weights in one file.

    Raises:
        CheckpointError: If a tokenizer is missing, or the two have too little in common.
        ResourceError: If the disk is full.
    """
    plan = plan_tokenizer(
        TokenizerSettings.model_validate({"source": "base"}), donor.folder, [target.folder]
    )
    match = _match(plan, donor, target)
    tables = {
        name: _find_donor(name, plan, donor)
        for name in target.names()
        if plan.is_token_table(name, target.shape(name), 1) and target.entry(name).dtype in FLOATS
    }
    if not tables:
        raise _unfit("the target has no tensor with a row a token", target)
    shapes = {name: (target.entry(name).dtype, target.shape(name)) for name in target.names()}
    shapes |= {name: (shapes[name][0], (plan.size, *shapes[name][1][1:])) for name in tables}
    left: dict[str, tuple[float, float]] = {}
    with CheckpointWriter(
        folder,
        config=plan.adapt_config(target.config, donor=1),
        shard_size=shard_size,
        plan=shapes,
    ) as writer:
        for name in target.names():
            writer.begin(name, shapes[name])
            if name in tables:
                table = _Table(plan, match, donor, target, name, tables[name], k)
                write_blocks(writer, name, table.blocks())
                if table.left:
                    left[name] = (float(np.median(table.left)), float(max(table.left)))
            else:
                write_blocks(writer, name, read_blocks(target, name))
        plan.write(writer.work)
    return Transplanted(
        writer.fingerprint,
        sum(token is not None for token in plan.vocabulary.tokens),
        int((match.rows[match.named] >= 0).sum()) - len(match.by_role),
        match.by_role,
        int((match.rows[match.named] < 0).sum()),
        left,
        tuple(name for name, found in tables.items() if not found),
    )


@dataclass(frozen=True, slots=True)
class _Match:
    """Which row of the target each row of the donor is, or -1; and which rows have a token."""

    rows: Array
    named: Array
    dictionary: Array
    by_role: tuple[str, ...]


def _match(plan: TokenPlan, donor: Checkpoint, target: Checkpoint) -> _Match:
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
        raise _unfit("the two tokenizers have no token in common", target)
    return _Match(rows, named, dictionary, tuple(by_role))


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


class _Table:
    """One token table of the result, made block by block."""

    def __init__(
        self,
        plan: TokenPlan,
        match: _Match,
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
        chosen, shares, left = pursue(self.atoms, signals, self.k)
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


def _unfit(what: str, target: Checkpoint) -> CheckpointError:
    return CheckpointError(
        what,
        code="merge.transplant",
        where=str(target.folder),
        expected="two models whose tokenizers share tokens",
        next="check that both folders hold a tokenizer.json and a config.json with vocab_size",
    )
