"""``Objective``: what a model is trained towards, and what it is given to begin with.

An objective says what one text, one pair or one group of answers counts for; the room draws the
masks, reads the log-probabilities and makes micro-batches of them. Imports no torch, so that a
recipe can name one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stillroom.errors import DataError
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import nn

    from stillroom.diffusion.metadata import DiffusionMetadata
    from stillroom.diffusion.model import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.source import NoisyBatch
    from stillroom.jobs import Job
    from stillroom.records import Record
    from stillroom.train.source import Source

__all__ = ["OBJECTIVES", "Course", "Lessons", "Objective"]


@dataclass(frozen=True, slots=True)
class Lessons:
    """Records as an objective takes them, and what was cut or left out on the way.

    Args:
        items: Texts, pairs or tasks.
        counts: By name, for the report.
    """

    items: Sequence[Any]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Course:
    """What an objective is given when training begins.

    Args:
        recipe: The recipe.
        model: The model before its first step; low-rank additions are there already.
        lessons: What the objective itself encoded.
        steps: Optimizer steps of the run.
        job: Keeps what cannot be made again.
    """

    recipe: DiffusionRecipe
    model: DiffusionModel
    lessons: Sequence[Any]
    steps: int
    job: Job

    @property
    def metadata(self) -> DiffusionMetadata:
        """What the model's config says."""
        return self.model.metadata

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        network: nn.Module = self.model.network
        return network


class Objective(Method):
    """What a model is trained towards."""

    needs_model: ClassVar[bool] = False
    """Whether it must start from a diffusion checkpoint: it says what is better, not what is."""

    has_times: ClassVar[bool] = False
    """Whether learned tokens have a time that their losses are logged by."""

    @property
    def reads(self) -> float:
        """How often a record is read in a step, as trainings: a reading alone is a third."""
        return 1.0

    @property
    def steps_per_batch(self) -> int:
        """How many optimizer steps learn from the same records."""
        return 1

    @abstractmethod
    def encode(
        self,
        recipe: DiffusionRecipe,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> Lessons:
        """Return records as lessons, as many as there are; ``on_done`` is called after each record.

        Raises:
            DataError: If a chat template hides the assistant's part.
        """

    @abstractmethod
    def begin(self, course: Course) -> Source[NoisyBatch]:
        """Return what gives the micro-batches of every step."""

    def miss(self, recipe: DiffusionRecipe, records: int) -> DataError:
        """Return the error that none of so many records makes a lesson."""
        return DataError(
            f"none of {records} records has a token to learn",
            code="diffusion.no-places",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {recipe.max_tokens}, or set include_prompt: true",
        )

    def measure(
        self, recipe: DiffusionRecipe, model: DiffusionModel, records: Sequence[Record]
    ) -> dict[str, float]:
        """Return what is measured of it on held-out records, before and after; here nothing."""
        return {}


OBJECTIVES = Seam("stillroom.diffusion.objectives", Objective)
