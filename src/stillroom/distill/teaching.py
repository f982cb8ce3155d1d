"""How a student is taught: one course for each place that the teacher's words can come from.

A course is what the training loop is given: which micro-batches there are, and their loss. The
recipe decides which one is opened; each lives in a function of its own and is all that knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.distill.cache import TeacherCache
from stillroom.distill.cache_fill import fill_cache
from stillroom.distill.encode import Batch, Lesson, make_batch
from stillroom.distill.engine import DistillObjective, no_rollouts
from stillroom.distill.feature_set import FeatureSet
from stillroom.distill.lessons import read_in_steps, record_source
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teachers import AnyTeacher, as_local
from stillroom.distill.writing_teacher import WritingTeacher
from stillroom.jobs import Job
from stillroom.records import Record
from stillroom.train.loop import Objective
from stillroom.train.precision import body_precision, choose_precision
from stillroom.train.ranks import Ranks
from stillroom.train.source import RecordSource, Source

__all__ = [
    "Classroom",
    "Course",
    "lesson_source",
    "live_objective",
    "open_course",
    "refuse_course",
    "text_course",
]


@dataclass(frozen=True)
class Classroom:
    """What every course is given.

    Args:
        recipe: Of the job.
        job: For progress, journals and scratch files.
        teacher: Loaded on first use; a course that needs it no more unloads it. One behind a server
            is asked instead.
        student: The model to train, on its device, LoRA layers included.
        tokenizer: The student's.
        records: Those to learn from.
        lessons: The same as tokens.
        rows: Tokens of the vocabulary that teacher and student share.
        start: Fingerprint of the checkpoint that the student starts from.
        held_out: Records that are measured on only.
        ranks: The processes that teach together.
    """

    recipe: DistillRecipe
    job: Job
    teacher: AnyTeacher | WritingTeacher
    student: nn.Module
    tokenizer: Any
    records: Sequence[Record]
    lessons: Sequence[Lesson]
    rows: int
    start: str = ""
    held_out: Sequence[Record] = ()
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device

    @cached_property
    def precision(self) -> str:
        """Of the matrix products: ``float32`` or ``bfloat16``."""
        return choose_precision(self.recipe.train.precision, self.device)


@dataclass(frozen=True)
class Course:
    """What the training loop is given, and what artifact.json keeps of it under its keys.

    ``beside`` is trained with the student and saved for a resumed run, and written nowhere else.
    """

    source: Source[Any]
    objective: Objective[Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    beside: nn.Module | None = None


def refuse_course(recipe: DistillRecipe) -> None:
    """Refuse what no course can teach, before anything is loaded.

    Raises:
        RecipeError: If the method needs rollouts and the recipe has none.
    """
    if recipe.method.needs_rollouts and recipe.rollouts is None:
        raise no_rollouts(recipe.method)


@contextmanager
def open_course(room: Classroom) -> Iterator[Course]:
    """Prepare the course that the recipe asks for; what it holds open is closed after the body.

    Raises:
        DataError: If a cache cannot be used, or the teacher gives numbers that are not finite.
        Cancelled: If the user asked for it; what was prepared is kept.
    """
    with _course_of(room) as course:
        yield course


def _course_of(room: Classroom) -> AbstractContextManager[Course]:
    if room.recipe.rollouts is not None:
        from stillroom.distill.rollout_course import rollout_course

        return rollout_course(room)
    if not room.recipe.method.asks_teacher and not room.recipe.features:
        return nullcontext(text_course(room))
    return _live(room) if room.recipe.targets.mode == "live" else _cached(room)


def text_course(room: Classroom) -> Course:
    """Return the course of a student that learns the text alone: no teacher is asked."""
    objective = DistillObjective(room.recipe.method, rows=room.rows, precision=room.precision)
    return Course(lesson_source(room, None), objective, {"cache": None})


@contextmanager
def _live(room: Classroom) -> Iterator[Course]:
    """Run the teacher in every step."""
    objective = live_objective(room)
    yield Course(lesson_source(room, None), objective, {"cache": None}, objective.features)


def live_objective(room: Classroom) -> DistillObjective:
    """Return the loss with the teacher run in every step, features included."""
    teacher, recipe = as_local(room.teacher).lowered(room.precision), room.recipe
    features = None
    if recipe.features:
        with body_precision(room.precision, room.device):
            features = FeatureSet(recipe.features, room.student, teacher, seed=recipe.seed)
    return DistillObjective(
        recipe.method,
        rows=room.rows,
        precision=room.precision,
        teacher=teacher,
        features=features,
    )


@contextmanager
def _cached(room: Classroom) -> Iterator[Course]:
    """Fill the teacher cache, let the teacher go, and learn from the cache.

    The main process captures and checks; the others wait, and read what it wrote.
    """
    recipe, teacher = room.recipe, as_local(room.teacher)
    folder = Path(recipe.targets.cache) if recipe.targets.cache else room.job.scratch / "cache"
    folder = room.ranks.share_path(folder)
    header = room.ranks.on_main(lambda: teacher.header(recipe, room.rows, room.precision))

    def capture() -> None:
        with TeacherCache.open(folder, header) as cache:
            heard = [lesson.by_teacher for lesson in read_in_steps(recipe, room.lessons)]
            fill_cache(cache, teacher, heard, room.job)

    room.ranks.on_main(capture)
    teacher.unload()
    with TeacherCache.open(folder, header) as cache:
        objective = DistillObjective(recipe.method, rows=room.rows, precision=room.precision)
        yield Course(lesson_source(room, cache), objective, {"cache": cache.header.model_dump()})


def lesson_source(room: Classroom, cache: TeacherCache | None) -> RecordSource[Lesson, Batch]:
    """Return the micro-batches of the lessons, with targets from a cache if there is one."""
    lessons, device = room.lessons, room.device

    def load(chosen: Sequence[Lesson]) -> Batch:
        heard = [lesson.by_teacher for lesson in chosen]
        return make_batch(chosen, cache.target(heard, device) if cache else None, device)

    return record_source(room.recipe, lessons, lessons, load, [one.name for one in lessons])
