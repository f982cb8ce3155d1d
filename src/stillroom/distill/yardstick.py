"""``Yardstick``: how far a model is from one teacher, by what the teacher told of held-out records.

Where a teacher stands in this process over the same tokens, whole distributions are compared
(``measuring``). Everywhere else it was asked once, and each of these holds what it said: its
likeliest tokens, or how likely it finds its own tokens of the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stillroom.distill.cache import TeacherCache
from stillroom.distill.cross_fidelity import NOT_DEFINED, CrossFidelity, measure_crossing
from stillroom.distill.cross_lessons import CrossLesson
from stillroom.distill.encode import Lesson
from stillroom.distill.figures import Figures
from stillroom.distill.told_fidelity import NOTE, ToldFidelity, measure_told

__all__ = ["CrossYardstick", "ToldYardstick", "Yardstick"]


class Yardstick(Protocol):
    """What was heard of one teacher, ready to measure any model on."""

    @property
    def name(self) -> str:
        """The teacher's."""

    @property
    def note(self) -> str:
        """What the figures are, in a sentence; may be empty."""

    @property
    def figures(self) -> type[Figures[Any]]:
        """What is measured."""

    def measure(self, model: Any) -> Figures[Any]:
        """Return how far a model in evaluation mode is from the teacher, by record."""


@dataclass(frozen=True)
class ToldYardstick:
    """A teacher of the same vocabulary: its likeliest tokens at temperature 1, and the rest."""

    name: str
    lessons: Sequence[Lesson]
    told: TeacherCache
    note: str = f"Its figures are {NOTE}."
    figures: type[Figures[Any]] = ToldFidelity

    def measure(self, model: Any) -> Figures[Any]:
        """Return the divergences of k + 1 outcomes."""
        return measure_told(model, self.lessons, self.told)


@dataclass(frozen=True)
class CrossYardstick:
    """A teacher of another vocabulary: the log-probabilities of its own tokens."""

    name: str
    lessons: Sequence[CrossLesson]
    heard: Mapping[str, npt.NDArray[np.float32]]
    note: str = (
        f"Across tokenizers the same bytes are compared; not defined are: {'; '.join(NOT_DEFINED)}."
    )
    figures: type[Figures[Any]] = CrossFidelity

    def measure(self, model: Any) -> Figures[Any]:
        """Return how far both are apart on the same bytes."""
        taught = [self.heard[lesson.key] for lesson in self.lessons]
        return measure_crossing(model, self.lessons, taught)
