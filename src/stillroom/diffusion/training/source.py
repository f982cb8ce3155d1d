"""Base classes of what a training job learns, and of its sources of micro-batches.

A ``WeightedDataSource`` starts each step with a forward pass over all its texts without gradients;
the result is the scale of each token, and the logged loss is that of the objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from stillroom.diffusion.settings import DiffusionRecipe
from stillroom.diffusion.training.data import CorruptedBatch, CorruptedExample, collate
from stillroom.errors import DataError
from stillroom.provenance import digest_json
from stillroom.train.data import RecordSource, group_by_length

if TYPE_CHECKING:
    from torch import nn

    from stillroom.diffusion.model.metadata import DiffusionMetadata, TargetMetadata
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.training.data import TokenizedDataset
    from stillroom.jobs import Job
    from stillroom.records import Record
    from stillroom.train.data import BatchSource
    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "StepDataSource",
    "TrainingContext",
    "TrainingObjective",
    "WeightedDataSource",
    "distribute",
]


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """State of a job when training starts.

    Args:
        model: Model before the first step, LoRA adapters included.
        examples: Examples from ``tokenize``.
        steps: Number of optimizer steps.
        job: Job, with journals for rollouts.
    """

    model: DiffusionModel
    examples: Sequence[Any]
    steps: int
    job: Job


R = TypeVar("R", bound=DiffusionRecipe)


class TrainingObjective(ABC, Generic[R]):
    """Examples, their source and metrics of one kind of training job."""

    is_causal: ClassVar[bool] = False
    """Whether the model is autoregressive, and its loss exact."""

    has_times: ClassVar[bool] = False
    """Whether losses are logged by the time of the masked tokens."""

    def __init__(self, recipe: R) -> None:
        """Set the recipe; its ``max_tokens`` is limited once the context length is known."""
        self.recipe = recipe

    @property
    def target(self) -> TargetMetadata | None:
        """Attention of the trained model; None keeps that of a diffusion checkpoint."""
        return None

    @property
    def learns_prompts(self) -> bool:
        """Whether all tokens are learned, instead of the assistant's answers."""
        return False

    @property
    def steps_per_batch(self) -> int:
        """Number of optimizer steps per batch of records."""
        return 1

    @property
    def method(self) -> str:
        """Method named in the origin of the checkpoint."""
        return self.recipe.kind

    @abstractmethod
    def tokenize(
        self,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        """Return records as examples; ``on_done`` is called after each record.

        Raises:
            DataError: If the chat template hides the assistant's messages.
        """

    @abstractmethod
    def open_source(self, context: TrainingContext) -> BatchSource[CorruptedBatch]:
        """Return the source of the micro-batches of every step."""

    @abstractmethod
    def no_examples_error(self, records: int) -> DataError:
        """Return the error for ``records`` records without a single example."""

    def evaluate(self, model: DiffusionModel, records: Sequence[Record]) -> dict[str, float]:
        """Return metrics of the objective on held-out records, beside the bound."""
        return {}


T = TypeVar("T")
Result = TypeVar("Result")


def distribute(
    ranks: ProcessGroup, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[Result]]
) -> list[Result]:
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
        """Prepare a training run."""
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
        """Prepare a training run."""
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
