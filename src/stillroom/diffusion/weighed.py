"""The micro-batches of texts whose tokens an objective has weighed.

Each step begins with a reading of all its texts without a gradient; what the objective makes of it
stands in the texts' scales, and the loss that is logged is the objective's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from stillroom.diffusion.learning import Course
from stillroom.diffusion.source import NoisyBatch, NoisyText, lay_out
from stillroom.provenance import digest_json
from stillroom.train.source import RecordSource, group_by_length

if TYPE_CHECKING:
    from torch import nn

    from stillroom.train.ranks import Ranks

__all__ = ["WeighedSource", "share_out"]

T = TypeVar("T")
R = TypeVar("R")


def share_out(
    ranks: Ranks, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
) -> list[R]:
    """Return ``work(items)``, each process doing its part of it."""
    every = ranks.gather(list(work(items[ranks.rank :: ranks.count])))
    return [every[at % ranks.count][at // ranks.count] for at in range(len(items))]


class WeighedSource(ABC):
    """A ``Source`` whose texts are drawn and weighed when a step begins."""

    def __init__(self, course: Course, ids: Sequence[str]) -> None:
        """Stand over lessons.

        Args:
            course: What training begins with.
            ids: The record of each lesson.
        """
        self.course, self.recipe, self.metadata = course, course.recipe, course.metadata
        settings = self.recipe.train
        self.micro_tokens = settings.micro_tokens
        self.ids = list(ids)
        self._records: RecordSource[object, NoisyBatch] = RecordSource(
            course.lessons,
            ids=self.ids,
            lengths=[1] * len(self.ids),
            valid=[1] * len(self.ids),
            load=lambda _: self.load([]),
            batch_size=settings.batch_size,
            micro_tokens=self.micro_tokens,
            seed=self.recipe.seed,
        )
        self._step = -1
        self._texts: list[NoisyText] = []
        self._notes: dict[str, float] = {}

    @abstractmethod
    def weigh(self, step: int, ranks: Ranks) -> tuple[list[NoisyText], dict[str, float]]:
        """Return a step's texts, their scales set, and what is logged of it."""

    @abstractmethod
    def describe(self) -> object:
        """Return what the lessons are, as JSON, for the digest."""

    @cached_property
    def identity(self) -> str:
        """A digest of all that the texts follow from, but the weights."""
        kept = self.recipe.model_dump(mode="json", exclude={"train", "out", "validation"})
        said = self.metadata.model_dump(mode="json")
        return digest_json([kept, said, self.ids, self.describe(), self.course.steps])

    def __len__(self) -> int:
        """Return how many lessons one epoch has."""
        return len(self.ids)

    def begin(self, step: int, model: nn.Module, ranks: Ranks) -> Mapping[str, float]:
        """Draw and weigh the step's texts."""
        self._texts, self._notes = self.weigh(step, ranks)
        self._step = step
        return self._notes

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the texts of each micro-batch of the step that was begun, longest first."""
        times = 1 if self.metadata.block_size is None else 2
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return what some texts count for."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> NoisyBatch:
        """Return one micro-batch of the plan."""
        texts = [self._texts[number] for number in group]
        return lay_out(texts, self.metadata, block_size=self.metadata.block_size)
