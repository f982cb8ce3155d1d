"""Batches by seed and step, and the train/validation (held-out) split of records.

Generated records come split by document, from ``synth.pipeline.inputs.split_documents``. There is
no iterator to restore: the batches of any step of any epoch are computed directly, so the data
cursor of a resumed run is the step number. Uses token counts only, never token values. Records are
not packed (no sequence packing): those of like length share a micro-batch. Over-long ones are
truncated, and prompts masked, by ``models.tokenization.assistant_mask.encode_conversation``; the
rooms pad batches (``distill.data.tokenized.make_batch``).

If any record has a ``split`` field, ``train`` is trained on and ``held_out`` evaluated; records
without one are split by a hash of their id, one in ten held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import digest_json, digest_text
from stillroom.records import Record, read_records
from stillroom.records.files import count_unread

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
    "order_records",
    "split_records",
]


class MicroBatch(Protocol):
    """A group of records computed at once."""

    @property
    def valid(self) -> int:
        """Number of positions with a loss."""

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""

    @property
    def record_ids(self) -> Sequence[str]:
        """Ids of the records, reported if the loss is not finite."""


B = TypeVar("B", bound=MicroBatch)
B_co = TypeVar("B_co", bound=MicroBatch, covariant=True)
T = TypeVar("T")


class BatchSource(Protocol[B_co]):
    """Provider of the micro-batches of any optimizer step."""

    @property
    def identity(self) -> str:
        """Digest of the data and their order; must be equal when a run is resumed."""

    def __len__(self) -> int:
        """Return the number of records in one epoch."""

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Prepare the data of a step; called on every rank before the step is planned.

        A source whose text is sampled from the model in training generates it here, so that the
        positions of the step are counted after its text is known.

        Returns:
            Metrics to log for the step.
        """

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the record indices of each micro-batch of a step, over all ranks."""

    def load(self, group: Sequence[int]) -> B_co:
        """Return one planned micro-batch, ready to compute."""

    def valid(self, group: Sequence[int]) -> int:
        """Return the number of loss positions of a planned micro-batch, without loading it."""


class RecordSource(Generic[T, B]):
    """Records shuffled each epoch, divided into steps, and steps into micro-batches.

    Within a step records are sorted by length to minimize padding. Which records belong to a step
    depends neither on that order nor on the number of ranks.
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
        """Initialize the source.

        Args:
            records: Inputs of ``load``.
            ids: Id of each record.
            lengths: Number of tokens of each record.
            valid: Number of loss positions of each record.
            load: Builds a micro-batch from records.
            batch_size: Records per optimizer step.
            micro_tokens: Maximum tokens, padding included, of a micro-batch of several records.
            seed: Seed of the shuffle.
        """
        self._records, self._load = records, load
        self._lengths, self._valid = list(lengths), list(valid)
        self.batch_size, self.micro_tokens, self.seed = batch_size, micro_tokens, seed
        self.identity = digest_json(
            [list(ids), self._lengths, self._valid, batch_size, micro_tokens, seed]
        )
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Return no metrics: the records need no preparation."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the record indices of each micro-batch of a step, longest records first."""
        return group_by_length(self.chosen(step), self._lengths, self.micro_tokens)

    def chosen(self, step: int) -> list[int]:
        """Return the record indices of a step, in the order of the epoch's shuffle."""
        first = step * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def load(self, group: Sequence[int]) -> B:
        """Return one planned micro-batch."""
        return self._load([self._records[number] for number in group])

    def valid(self, group: Sequence[int]) -> int:
        """Return the number of loss positions of a planned micro-batch."""
        return sum(self._valid[number] for number in group)

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self))
        if epoch not in self._orders:
            generator = np.random.default_rng([self.seed, epoch])
            self._orders = {
                **{
                    previous: order
                    for previous, order in self._orders.items()
                    if previous == epoch - 1
                },
                epoch: generator.permutation(len(self)).tolist(),
            }
        return self._orders[epoch][offset]


def group_by_length(
    numbers: Sequence[int], lengths: Sequence[int], micro_tokens: int
) -> list[list[int]]:
    """Group indices into batches of at most ``micro_tokens`` padded tokens, longest first.

    Args:
        numbers: Indices into ``lengths``.
        lengths: Number of tokens of each item.
        micro_tokens: Maximum tokens, padding included, of a group of several items.
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
    """Training records, held-out records by id, and counts of skipped records by reason.

    The first held-out records are thus a sample of them, the same wherever they are measured.
    """

    train: list[Record]
    held_out: list[Record]
    passed_over: dict[str, int]

    @property
    def skipped(self) -> str:
        """The counts in words; empty if no record was skipped."""
        return ", ".join(f"{reason}: {count}" for reason, count in self.passed_over.items())


def order_records(records: Iterable[Record]) -> list[Record]:
    """Return records by id, a digest of their content: the first are a sample, whatever the order.

    The first rows of a file sorted by task are all of one task.
    """
    return sorted(records, key=lambda record: record.id)


def split_records(path: Path) -> RecordSplit:
    """Read the records of a file and split them.

    Raises:
        DataError: If there is no training record.
    """
    reasons: list[str] = []
    records = list(read_records(path, on_drop=lambda row, why: reasons.append(f"row {row}: {why}")))
    passed_over: Counter[str] = Counter(count_unread(reasons))
    has_splits = any("split" in record.fields for record in records)
    train, held_out = [], []
    for record in records:
        split = _split_of(record, has_splits=has_splits)
        if split == "train":
            train.append(record)
        elif split == "held_out":
            held_out.append(record)
        else:
            passed_over[f"split {split!r:.40}"] += 1
    if not train:
        raise DataError(
            f"{path} has no training record{''.join(f'; {reason}' for reason in reasons[:1])}",
            code="train.no-records",
            where=str(path),
            expected="records with fields.split 'train', or records without a split",
            next="list the records and their splits with stillroom show",
        )
    return RecordSplit(train, order_records(held_out), dict(passed_over))


def is_training_record(record: Record, *, has_splits: bool) -> bool:
    """Return whether a record is trained on; ``has_splits`` if any record of its file has one."""
    return bool(_split_of(record, has_splits=has_splits) == "train")


def _split_of(record: Record, *, has_splits: bool) -> Any:
    if has_splits:
        return record.fields.get("split")
    return "held_out" if int(digest_text(record.id)[:8], 16) % _HOLDOUT_DIVISOR == 0 else "train"
