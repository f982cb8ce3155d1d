"""Which records make up which optimizer step: a pure function of seed and step number.

There is no iterator to restore: any step of any epoch can be asked for directly, so the data cursor
of a resumed run is the step number itself. Knows no tokens' meaning, only their counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from stillroom.provenance import digest_json

if TYPE_CHECKING:
    from torch import nn

    from stillroom.train.ranks import Ranks

__all__ = ["MicroBatch", "RecordSource", "Source", "group_by_length"]


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


class Source(Protocol[B_co]):
    """Gives the micro-batches of any optimizer step."""

    @property
    def identity(self) -> str:
        """A digest of the data and their order; a resumed run must bring the same."""

    def __len__(self) -> int:
        """Return how many records one epoch has."""

    def begin(self, step: int, model: nn.Module, ranks: Ranks) -> Mapping[str, float]:
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

    def begin(self, step: int, model: nn.Module, ranks: Ranks) -> Mapping[str, float]:
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
