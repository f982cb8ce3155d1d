"""Batch source as a pure function of seed and step, and the training/held-out split.

There is no iterator to restore: any step of any epoch can be asked for directly, so the data cursor
of a resumed run is the step number itself. Knows no tokens' meaning, only their counts.

Where any record names its split, ``train`` is learned from and ``held_out`` measured; data made
elsewhere, that names none, is split by each record's id, a tenth held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import digest_json, digest_text
from stillroom.records import Record, read_records

if TYPE_CHECKING:
    from torch import nn

    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "BatchSource",
    "MicroBatch",
    "RecordSource",
    "RecordSplit",
    "group_by_length",
    "is_training_record",
    "split_records",
]


class MicroBatch(Protocol):
    """What is computed at once."""

    @property
    def valid(self) -> int:
        """Number of positions that bear loss."""

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""

    @property
    def record_ids(self) -> Sequence[str]:
        """The records inside, named when the loss is not finite."""


B = TypeVar("B", bound=MicroBatch)


B_co = TypeVar("B_co", bound=MicroBatch, covariant=True)


T = TypeVar("T")


class BatchSource(Protocol[B_co]):
    """Gives the micro-batches of any optimizer step."""

    @property
    def identity(self) -> str:
        """A digest of the data and their order; a resumed run must bring the same."""

    def __len__(self) -> int:
        """Return how many records one epoch has."""

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Make what the step learns from; called on every rank, before the step is planned.

        A source whose text is written by the model that is being trained writes it here, so that
        the positions of a step are counted after its text is known.

        Returns:
            Numbers to be logged for the step.
        """

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the record numbers of each micro-batch of a step, over all ranks."""

    def load(self, group: Sequence[int]) -> B_co:
        """Return one micro-batch of the plan, ready to compute."""

    def valid(self, group: Sequence[int]) -> int:
        """Return how many positions of a planned micro-batch bear loss, without loading it."""


class RecordSource(Generic[T, B]):
    """Shuffles records each epoch, cuts them into steps, and steps into micro-batches.

    Within a step records are sorted by length, so that a micro-batch pads little; which records a
    step has does not depend on that, nor on how many ranks share it.
    """

    def __init__(
        self,
        records: Sequence[T],
        *,
        ids: Sequence[str],
        lengths: Sequence[int],
        valid: Sequence[int],
        load: Callable[[Sequence[T]], B],
        batch_size: int,
        micro_tokens: int,
        seed: int,
    ) -> None:
        """Stand over ``records``.

        Args:
            records: What ``load`` takes.
            ids: One id a record.
            lengths: Tokens of each record.
            valid: Loss-bearing positions of each record.
            load: Makes a micro-batch of some records.
            batch_size: Records a step.
            micro_tokens: Most tokens, padding included, of a micro-batch of more than one record.
            seed: Shuffles.
        """
        self._records, self._load = records, load
        self._lengths, self._valid = list(lengths), list(valid)
        self.batch_size, self.micro_tokens, self.seed = batch_size, micro_tokens, seed
        self.identity = digest_json(
            [list(ids), self._lengths, self._valid, batch_size, micro_tokens, seed]
        )
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """Return how many records one epoch has."""
        return len(self._lengths)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Do nothing: the records are there."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the record numbers of each micro-batch of a step, longest records first."""
        return group_by_length(self.chosen(step), self._lengths, self.micro_tokens)

    def chosen(self, step: int) -> list[int]:
        """Return the record numbers of a step, in the order of the epoch's shuffle."""
        first = step * self.batch_size
        return [self._at(place) for place in range(first, first + self.batch_size)]

    def load(self, group: Sequence[int]) -> B:
        """Return one micro-batch of the plan."""
        return self._load([self._records[number] for number in group])

    def valid(self, group: Sequence[int]) -> int:
        """Return how many positions of a planned micro-batch bear loss."""
        return sum(self._valid[number] for number in group)

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, len(self))
        if epoch not in self._orders:
            generator = np.random.default_rng([self.seed, epoch])
            self._orders = {
                **{old: order for old, order in self._orders.items() if old == epoch - 1},
                epoch: generator.permutation(len(self)).tolist(),
            }
        return self._orders[epoch][offset]


def group_by_length(
    numbers: Sequence[int], lengths: Sequence[int], micro_tokens: int
) -> list[list[int]]:
    """Return numbers in groups of at most ``micro_tokens`` tokens with padding, longest first.

    Args:
        numbers: Indexes into ``lengths``.
        lengths: Tokens of each.
        micro_tokens: Most tokens, padding included, of a group of more than one.
    """
    groups: list[list[int]] = []
    for number in sorted(numbers, key=lambda number: (-lengths[number], number)):
        width = lengths[groups[-1][0]] if groups else 0
        if groups and width * (len(groups[-1]) + 1) <= micro_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


_HOLDOUT_DIVISOR = 10


@dataclass(frozen=True, slots=True)
class RecordSplit:
    """Records to learn from, records to measure on, and what was passed over by reason."""

    train: list[Record]
    held_out: list[Record]
    passed_over: dict[str, int]


def split_records(path: Path) -> RecordSplit:
    """Read records and split them.

    Raises:
        DataError: If there is nothing to learn from.
    """
    passed_over: Counter[str] = Counter()
    reasons: list[str] = []

    def drop(row: int, reason: str) -> None:
        passed_over["unreadable row"] += 1
        if not reasons:
            reasons.append(f"row {row}: {reason}")

    every = list(read_records(path, on_drop=drop))
    has_splits = any("split" in record.fields for record in every)
    train, held_out = [], []
    for record in every:
        split = _split_of(record, has_splits=has_splits)
        if split == "train":
            train.append(record)
        elif split == "held_out":
            held_out.append(record)
        else:
            passed_over[f"split {split!r:.40}"] += 1
    if not train:
        raise DataError(
            f"{path} has no record to learn from{''.join(f'; {one}' for one in reasons)}",
            code="train.no-records",
            where=str(path),
            expected="records with fields.split 'train', or records that name no split",
            next="check how the records were made: stillroom show shows their splits",
        )
    return RecordSplit(train, held_out, dict(passed_over))


def is_training_record(record: Record, *, has_splits: bool) -> bool:
    """Whether a record is learned from, in a file of which some records name a split or none."""
    return bool(_split_of(record, has_splits=has_splits) == "train")


def _split_of(record: Record, *, has_splits: bool) -> Any:
    if has_splits:
        return record.fields.get("split")
    return "held_out" if int(digest_text(record.id)[:8], 16) % _HOLDOUT_DIVISOR == 0 else "train"
