"""Base classes of what a training job learns, and of its sources of micro-batches.

A ``WeightedDataSource`` starts each step with a forward pass over all its texts without gradients;
the result is the scale of each token, and the logged loss is that of the objective.
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

    from stillroom.diffusion.model.metadata import DiffusionMetadata
    from stillroom.diffusion.settings import DiffusionRecipe
    from stillroom.diffusion.training.objective import TrainingContext
    from stillroom.train.distributed import ProcessGroup

__all__ = ["StepDataSource", "WeightedDataSource", "distribute"]

T = TypeVar("T")
R = TypeVar("R")


def distribute(
    ranks: ProcessGroup, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
) -> list[R]:
    """Return ``work(items)``, computed in parts by all processes."""
    every = ranks.gather(list(work(items[ranks.rank :: ranks.count])))
    return [every[index % ranks.count][index // ranks.count] for index in range(len(items))]


class StepDataSource(ABC):
    """Source of the micro-batches of texts that are drawn at the start of each step."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        metadata: DiffusionMetadata,
        examples: Sequence[object],
        steps: int,
    ) -> None:
        """Prepare a training run.

        Args:
            recipe: Recipe of the job.
            metadata: Attention, mask token and logit shift.
            examples: Examples.
            steps: Number of optimizer steps.
        """
        self.metadata, self.steps, self.seed = metadata, steps, recipe.seed
        self.micro_tokens, self._settings = recipe.train.micro_tokens, recipe
        self._length = len(examples)
        self._step = -1
        self._texts: list[CorruptedExample] = []

    @abstractmethod
    def describe(self) -> object:
        """Return the examples as JSON, for the digest."""

    @cached_property
    def identity(self) -> str:
        """Digest of everything that determines the texts, except for the weights."""
        settings = self._settings.model_dump(mode="json", exclude={"train", "out", "validation"})
        metadata = self.metadata.model_dump(mode="json")
        return digest_json([settings, metadata, self.describe(), self.steps])

    def __len__(self) -> int:
        """Return the number of examples per epoch."""
        return self._length

    def block_size(self, step: int) -> int | None:
        """Return the block size of a step's attention; None without blocks."""
        return self.metadata.block_size

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the texts of each micro-batch of the current step, longest first."""
        times = 1 if self.block_size(step) is None else 2
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return the summed units of some texts."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the plan."""
        texts = [self._texts[number] for number in group]
        return collate(texts, self.metadata, block_size=self.block_size(self._step))


class WeightedDataSource(StepDataSource):
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
        super().__init__(recipe, context.model.metadata, context.examples, context.steps)
        self.context, self.ids = context, list(ids)
        self._records: RecordSource[object, CorruptedBatch] = RecordSource(
            context.examples,
            ids=self.ids,
            lengths=[1] * len(self.ids),
            valid=[1] * len(self.ids),
            load=lambda _: self.load([]),
            batch_size=recipe.train.batch_size,
            micro_tokens=self.micro_tokens,
            seed=self.seed,
        )

    @abstractmethod
    def weigh(
        self, step: int, ranks: ProcessGroup
    ) -> tuple[list[CorruptedExample], dict[str, float]]:
        """Return the texts of a step, with their scales, and metrics to log."""

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw and weight the texts of a step."""
        self._texts, notes = self.weigh(step, ranks)
        self._step = step
        return notes
