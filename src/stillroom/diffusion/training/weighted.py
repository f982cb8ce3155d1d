"""Base class of the sources of texts that a policy weights before each step.

Each step starts with a forward pass over all its texts without gradients; the result is the scale
of each token, and the logged loss is that of the objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from stillroom.diffusion.training.data import CorruptedBatch, CorruptedExample, collate
from stillroom.provenance import digest_json
from stillroom.train.data import RecordSource, group_by_length

if TYPE_CHECKING:
    from torch import nn

    from stillroom.diffusion.settings import DiffusionRecipe
    from stillroom.diffusion.training.objective import TrainingContext
    from stillroom.train.distributed import ProcessGroup

__all__ = ["WeightedDataSource", "distribute"]

T = TypeVar("T")
R = TypeVar("R")


def distribute(
    ranks: ProcessGroup, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
) -> list[R]:
    """Return ``work(items)``, computed in parts by all processes."""
    every = ranks.gather(list(work(items[ranks.rank :: ranks.count])))
    return [every[index % ranks.count][index // ranks.count] for index in range(len(items))]


class WeightedDataSource(ABC):
    """Source of texts that are drawn and weighted at the start of each step."""

    def __init__(
        self, recipe: DiffusionRecipe, context: TrainingContext, ids: Sequence[str]
    ) -> None:
        """Prepare a training run.

        Args:
            recipe: Recipe of the job.
            context: Model and examples.
            ids: Record of each example.
        """
        self.context, self.metadata = context, context.model.metadata
        self._settings, self.seed = recipe, recipe.seed
        settings = recipe.train
        self.micro_tokens = settings.micro_tokens
        self.ids = list(ids)
        self._records: RecordSource[object, CorruptedBatch] = RecordSource(
            context.examples,
            ids=self.ids,
            lengths=[1] * len(self.ids),
            valid=[1] * len(self.ids),
            load=lambda _: self.load([]),
            batch_size=settings.batch_size,
            micro_tokens=self.micro_tokens,
            seed=self.seed,
        )
        self._step = -1
        self._texts: list[CorruptedExample] = []
        self._notes: dict[str, float] = {}

    @abstractmethod
    def weigh(
        self, step: int, ranks: ProcessGroup
    ) -> tuple[list[CorruptedExample], dict[str, float]]:
        """Return the texts of a step, with their scales, and metrics to log."""

    @abstractmethod
    def describe(self) -> object:
        """Return the examples as JSON, for the digest."""

    @cached_property
    def identity(self) -> str:
        """Digest of everything that determines the texts, except for the weights."""
        settings = self._settings.model_dump(mode="json", exclude={"train", "out", "validation"})
        metadata = self.metadata.model_dump(mode="json")
        return digest_json([settings, metadata, self.ids, self.describe(), self.context.steps])

    def __len__(self) -> int:
        """Return the number of examples per epoch."""
        return len(self.ids)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw and weight the texts of a step."""
        self._texts, self._notes = self.weigh(step, ranks)
        self._step = step
        return self._notes

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the texts of each micro-batch of the current step, longest first."""
        times = 1 if self.metadata.block_size is None else 2
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return the summed units of some texts."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the plan."""
        texts = [self._texts[number] for number in group]
        return collate(texts, self.metadata, block_size=self.metadata.block_size)
