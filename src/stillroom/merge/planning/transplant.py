"""Tokenizer transplant plans (mergekit-tokensurgeon): the target with the donor's tokens.

Rows of shared tokens are copied, bit for bit; new ones are computed by ``engine.computation``.
Differs from the paper: tokens are also matched by their bytes, and special tokens by their role.

Source: Goddard and Fernandes Neto 2025, Training-free tokenizer transplantation via orthogonal
matching pursuit, arXiv:2506.06607.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError
from stillroom.merge.planning.inputs import MergeSource
from stillroom.merge.planning.plan import (
    SAFETENSORS_DTYPES,
    MergePlan,
    PlannedTensor,
    SourceTensor,
    TokenMatch,
    TransplantedTable,
)
from stillroom.merge.planning.planner import list_source_notes
from stillroom.merge.planning.token_plan import TokenPlan, plan_tokenizer
from stillroom.merge.planning.vocabulary import adapt_config
from stillroom.merge.settings import TokenizerSettings

if TYPE_CHECKING:
    from stillroom.merge.jobs.transplant import TransplantRecipe

__all__ = ["TransplantPlanner", "plan_transplant"]

_HEADS = ("lm_head", "embed_out", "output", "predictions", "vocab_projector")
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def plan_transplant(
    recipe: TransplantRecipe, target: MergeSource, donors: Sequence[MergeSource]
) -> MergePlan:
    """Return the plan of a transplant: the target's tensors with new token tables.

    Raises:
        CheckpointError: If a tokenizer is missing, or the two have too little in common.
    """
    (donor,) = donors
    planner = TransplantPlanner(target, donor, recipe)
    tensors = tuple(planner.tensors())
    return MergePlan(
        "transplant",
        (target.name, donor.name),
        tensors,
        (),
        adapt_config(planner.plan, target.checkpoint.config, donor=1),
        target.checkpoint.size_bytes + planner.donor_bytes,
        1,
        planner.plan,
        (*list_source_notes([target, donor]), *planner.notes()),
        held_bytes=3 * planner.table_bytes,
        match=planner.match,
    )


@dataclass(frozen=True)
class TransplantPlanner:
    """Maps rows of both models to rows of the result."""

    target: MergeSource
    donor: MergeSource
    recipe: TransplantRecipe

    @cached_property
    def plan(self) -> TokenPlan:
        """Origin of each row of the new embeddings."""
        settings = TokenizerSettings.model_validate({"source": "base"})
        folders = [source.checkpoint.folder for source in (self.donor, self.target)]
        return plan_tokenizer(settings, folders[0], folders[1:])

    @cached_property
    def match(self) -> TokenMatch:
        """Tokens in both vocabularies."""
        return _match_tokens(
            self.plan, self.donor.checkpoint, self.target.checkpoint, self.recipe.k
        )

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
        dtype = SAFETENSORS_DTYPES.get(self.recipe.out.dtype or "", "")
        for name in target.names():
            entry = target.entry(name)
            stored = dtype if dtype and entry.dtype in FLOATS else entry.dtype
            if name in self.tables:
                shape = (self.plan.size, *entry.shape[1:])
                table = TransplantedTable(name, self.tables[name])
                yield PlannedTensor(name, stored, shape, None, (), is_placed=True, computed=table)
            else:
                home = (SourceTensor(0, name),)
                yield PlannedTensor(name, stored, entry.shape, None, home, is_placed=True)

    def notes(self) -> Iterator[str]:
        """Yield the notes of the plan."""
        roles = f", {len(self.match.by_role)} by their role" if self.match.by_role else ""
        yield f"{self.target.name} gets the tokenizer of {self.donor.name}: {self.tokens} tokens"
        yield (
            f"{self.shared} rows are copied{roles}; {self.new} are written as sums of at most "
            f"{self.recipe.k} others"
        )


def _match_tokens(plan: TokenPlan, donor: Checkpoint, target: Checkpoint, k: int) -> TokenMatch:
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
    return TokenMatch(k, rows, named, dictionary, tuple(by_role))


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


def _transplant_error(problem: str, target: Checkpoint) -> CheckpointError:
    return CheckpointError(
        problem,
        code="merge.transplant",
        where=str(target.folder),
        expected="two models whose tokenizers share tokens",
        next="check that both folders have a tokenizer.json and a config.json with vocab_size",
    )
