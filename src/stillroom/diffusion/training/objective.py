"""Base class of what a training job learns, and from which examples.

The job of every kind is the same (``stillroom.diffusion.trainer``) except for its objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from stillroom.diffusion.settings import DiffusionRecipe
from stillroom.errors import DataError

if TYPE_CHECKING:
    from stillroom.diffusion.model.metadata import TargetMetadata
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.training.data import CorruptedBatch, TokenizedDataset
    from stillroom.jobs import Job
    from stillroom.records import Record
    from stillroom.train.data import BatchSource

__all__ = ["TrainingContext", "TrainingObjective"]


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
