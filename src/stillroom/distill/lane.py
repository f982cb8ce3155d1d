"""``Lane``: what differs between jobs whose teacher is here, elsewhere, or of another tokenizer.

One orchestration (``run``) goes through all of them: records become lessons, the teacher is heard,
the student learns by a course, and everything is measured by one examiner. A lane says how each of
these is done with its kind of teacher; it trains and measures nothing itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.distill.figures import Figures
from stillroom.distill.lessons import Split
from stillroom.distill.preparing import Prepared, prepare_lessons
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.start import start_student
from stillroom.distill.teacher import Teacher, common_rows
from stillroom.distill.teachers import AnyTeacher, Chair, as_local
from stillroom.distill.teaching import Classroom, Course, open_course
from stillroom.distill.writing_teacher import WritingTeacher
from stillroom.distill.yardstick import Yardstick
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint

__all__ = ["HomeLane", "Lane"]


@dataclass
class Lane(ABC):
    """The parts of a job that its kind of teacher decides.

    Args:
        recipe: Of the job.
        job: For progress, journals and scratch files.
        chairs: The teachers, at least one, with their shares.
    """

    recipe: DistillRecipe
    job: Job
    chairs: list[Chair]

    closing: ClassVar[str] = (
        "`fidelity.html` says how near it is to its teacher on held-out records."
    )
    """What the student's card says of the folder's other files, where something was measured."""
    fidelity_key: ClassVar[str] = "fidelity"
    """Under which name artifact.json keeps what was measured."""

    @property
    def teachers(self) -> Sequence[AnyTeacher | WritingTeacher]:
        """The teachers, in order."""
        return [chair.teacher for chair in self.chairs]

    @property
    def first(self) -> AnyTeacher:
        """The first teacher, whose tokenizer and template all share."""
        return self.chairs[0].teacher

    @property
    def loss(self) -> str:
        """What is lowered, in the recipe's words."""
        return self.recipe.method.method_name()

    @property
    def method(self) -> str:
        """What the student's origin names."""
        if not self.recipe.method.kd_weight:
            return "distill.cross_entropy"
        return f"distill.methods.{self.loss}"

    @property
    def measured_teacher(self) -> Teacher | None:
        """The one teacher in this process, who is measured as the student is."""
        (first, *others) = self.teachers
        return first if isinstance(first, Teacher) and not others else None

    @property
    def is_compared(self) -> bool:
        """Whether students are compared with that teacher by whole distributions."""
        return False

    @property
    def tokenizer(self) -> Any:
        """The student's."""
        return self.first.tokenizer

    def prepare(self, split: Split) -> Prepared:
        """Return what is learned from.

        Raises:
            DataError: If nothing is left to learn from.
        """
        return prepare_lessons(self.recipe, split, self.tokenizer, self.job)

    def start(self, prepared: Prepared) -> tuple[Path, dict[str, Any]]:
        """Return the folder that the student starts from, and what artifact.json says of it.

        Raises:
            CheckpointError: If a checkpoint cannot be read, or the teacher is not understood.
            RecipeError: If the teacher cannot give such a student.
        """
        student = self.recipe.student
        if isinstance(student, str):
            path = resolve_checkpoint(student, say=self.job.say)
            return Checkpoint.open(path).folder, {"layers_kept": []}
        return start_student(student, self.job, as_local(self.first), prepared.lessons)

    @abstractmethod
    def admit(self, student: Any, tokenizer: Any) -> int:
        """Return how many tokens all sides share; refuse a student that cannot learn from these.

        Raises:
            CheckpointError: If the vocabularies differ where they must not.
        """

    @contextmanager
    def hear(self, room: Classroom) -> Iterator[list[Yardstick]]:
        """Ask teachers that are not here when they are needed; yield how far from them is measured.

        Raises:
            BackendError: If a server cannot be reached or tells too little.
            Cancelled: If the user asked for it; what was heard is kept.
        """
        yield []

    @abstractmethod
    def course(self, room: Classroom) -> AbstractContextManager[Course]:
        """Prepare what the training loop is given; open within ``hear``."""

    def describe(self) -> Mapping[str, Any]:
        """Return what artifact.json says of teachers and loss, beside what every lane says."""
        return {}

    def report(self, found: Mapping[str, Sequence[Figures[Any]]]) -> Mapping[str, Any]:
        """Return what fidelity.json says of its own kind.

        Args:
            found: By side, one figure a yardstick.
        """
        return {}


class HomeLane(Lane):
    """One checkpoint in this process, of the student's vocabulary."""

    @cached_property
    def _teacher(self) -> Teacher:
        return as_local(self.first)

    @property
    @override
    def is_compared(self) -> bool:
        return True

    @override
    def admit(self, student: Any, tokenizer: Any) -> int:
        return common_rows(self._teacher, student, tokenizer)

    @override
    def course(self, room: Classroom) -> AbstractContextManager[Course]:
        return open_course(room)

    @override
    def describe(self) -> Mapping[str, Any]:
        checkpoint = self._teacher.checkpoint
        return {"teacher": checkpoint.fingerprint, "teacher_parameters": checkpoint.parameters}
