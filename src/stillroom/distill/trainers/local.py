"""Training from one local teacher of the same vocabulary, live or through the logit cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from stillroom.distill.data.preparation import prepare_data, select_reached
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.logit_cache.cache import CacheCoverage, LogitCache, describe_cache
from stillroom.distill.logit_cache.capture import CacheCost, capture_teacher, estimate_cache_cost
from stillroom.distill.logit_cache.storage import CacheHeader
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.settings import PruneSettings
from stillroom.distill.teachers.ensemble import require_local
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.distill.trainers.trainer import (
    DistillationContext,
    DistillationTrainer,
    TrainingSetup,
    make_batch_source,
    make_live_loss,
    make_text_training,
)
from stillroom.errors import DataError, RecipeError
from stillroom.jobs import Estimate, Job, Reporter, check_fits, describe_machine
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.objects import resolve_local
from stillroom.recipes import dump_recipe
from stillroom.train.data import split_records
from stillroom.train.precision import choose_precision, limit_threads

__all__ = [
    "CaptureSummary",
    "LocalTeacherTrainer",
    "capture_recipe",
    "fill_cache",
    "open_training",
]


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """What was wanted and there before, what the rest costs, what the cache holds afterwards."""

    before: CacheCoverage
    cost: CacheCost | None
    cache: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return it by name."""
        return {
            "wanted": {"records": self.before.records, "positions": self.before.positions},
            "found_before": {
                "records": self.before.records_found,
                "positions": self.before.positions_found,
            },
            "cost": self.cost.to_json() if self.cost else None,
            "cache": self.cache,
        }


def fill_cache(
    cache: LogitCache,
    teacher: LocalTeacher,
    lessons: Sequence[TokenizedRecord],
    job: Job,
    *,
    only_estimate: bool = False,
) -> CaptureSummary:
    """Capture what the cache lacks of these lessons, after saying what that will take.

    Args:
        cache: Opened with the header of this teacher's words.
        teacher: Loaded only if something is missing.
        lessons: As the teacher reads them.
        job: For progress and cancellation.
        only_estimate: Capture nothing.

    Raises:
        DataError: If the teacher gives a number that is not finite.
        IntegrityError: If rows that were there are damaged.
        ResourceError: If the disk is too small, or another process is adding.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    before = cache.cover(lessons)
    job.say(f"teacher cache {cache.folder}: {before}")
    cost = None
    missing = cache.lacking(lessons)
    if missing:
        model = teacher.lowered(cache.header.precision)
        cost = estimate_cache_cost(model, cache.header, missing)
        job.say(str(cost))
        knob = "capture less: targets.mode sampled keeps the least"
        need = Estimate(disk_bytes=cost.size_bytes, disk_knob=knob)
        check_fits(need, describe_machine(cache.folder), str(cache.folder))
        if not only_estimate:
            capture_teacher(model, lessons, cache, job)
    if not only_estimate:
        cache.verify()
    return CaptureSummary(before, cost, describe_cache(cache))


def capture_recipe(
    recipe: DistillRecipe, folder: Path, *, only_estimate: bool = False, reporter: Reporter
) -> CaptureSummary:
    """Fill a cache for a recipe without training; run again, it goes on where it stopped.

    Args:
        recipe: Of kind distill; its ``targets.cache`` is not looked at.
        folder: The cache.
        only_estimate: Say coverage and cost, and capture nothing.
        reporter: For progress.

    Raises:
        RecipeError: If the recipe keeps no distributions of its teacher.
        DataError: If records or cache cannot be used.
        ResourceError: If the disk is too small, or another process is adding.
    """
    named = _check_recipe(recipe)
    with _open_job(recipe, folder, reporter) as job, limit_threads(recipe.train.threads):
        teacher = LocalTeacher.find(named, job)
        prepared = prepare_data(
            recipe, split_records(resolve_local(recipe.records)), teacher.tokenizer, job
        )
        lessons = [lesson.by_teacher for lesson in prepared.lessons]
        header = _make_header(recipe, teacher)
        with LogitCache.open(folder, header) as cache:
            return fill_cache(cache, teacher, lessons, job, only_estimate=only_estimate)


def _check_recipe(recipe: DistillRecipe) -> str:
    """Refuse a recipe that keeps no distributions of one teacher here; return its reference."""
    kept = "targets.mode live" if recipe.targets.mode == "live" else ""
    kept = "a crossing" if recipe.crossing is not None else kept
    if isinstance(recipe.teacher, str) and not kept:
        return recipe.teacher
    raise RecipeError(
        f"{kept or 'a teacher elsewhere, or several,'} cannot be captured without its run",
        code="distill.nothing-kept",
        where="targets.mode" if kept else "teacher",
        expected="one teacher in this process, targets.mode top_k, sampled or dense, no crossing",
        next="change the recipe, or run it: stillroom run",
    )


def _make_header(recipe: DistillRecipe, teacher: LocalTeacher) -> CacheHeader:
    """Return the header that a run of the recipe would ask for."""
    device = next(teacher.model.parameters()).device
    rows = LMHead.of(teacher.model).rows
    if not isinstance(recipe.student, PruneSettings):
        student, tokenizer = load_causal_lm(resolve_checkpoint(recipe.student), dtype="float32")
        rows = count_shared_rows(teacher, student, tokenizer)
    return teacher.header(recipe, rows, choose_precision(recipe.train.precision, device))


@contextmanager
def _open_job(recipe: DistillRecipe, folder: Path, reporter: Reporter) -> Iterator[Job]:
    """Yield a job whose journals lie beside the cache until it is filled."""
    folder.mkdir(parents=True, exist_ok=True)
    out, text = folder / "capture", dump_recipe(recipe)
    try:
        job = Job.start(out, text, seed=recipe.seed, resume=True, reporter=reporter)
    except DataError as error:
        if error.code != "data.other-recipe":
            raise
        job = Job.start(out, text, seed=recipe.seed, overwrite=True, reporter=reporter)
    try:
        yield job
    finally:
        job.close()
    shutil.rmtree(job.work)


class LocalTeacherTrainer(DistillationTrainer):
    """One checkpoint in this process, of the student's vocabulary."""

    @cached_property
    def _teacher(self) -> LocalTeacher:
        return require_local(self.first)

    @property
    @override
    def is_compared(self) -> bool:
        return True

    @override
    def admit(self, student: Any, tokenizer: Any) -> int:
        return count_shared_rows(self._teacher, student, tokenizer)

    @override
    def course(self, room: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        return open_training(room)

    @override
    def describe(self) -> Mapping[str, Any]:
        checkpoint = self._teacher.checkpoint
        return {"teacher": checkpoint.fingerprint, "teacher_parameters": checkpoint.parameters}


@contextmanager
def open_training(room: DistillationContext) -> Iterator[TrainingSetup]:
    """Prepare the course that the recipe asks for; what it holds open is closed after the body.

    Raises:
        DataError: If a cache cannot be used, or the teacher gives numbers that are not finite.
        Cancelled: If the user asked for it; what was prepared is kept.
    """
    with _select_training(room) as course:
        yield course


def _select_training(room: DistillationContext) -> AbstractContextManager[TrainingSetup]:
    if room.recipe.rollouts is not None:
        from stillroom.distill.trainers.on_policy import open_on_policy_training

        return open_on_policy_training(room)
    if not room.recipe.method.asks_teacher and not room.recipe.features:
        return nullcontext(make_text_training(room))
    return _open_live(room) if room.recipe.targets.mode == "live" else _open_cached(room)


@contextmanager
def _open_live(room: DistillationContext) -> Iterator[TrainingSetup]:
    """Run the teacher in every step."""
    objective = make_live_loss(room)
    yield TrainingSetup(
        make_batch_source(room, None), objective, {"cache": None}, objective.features
    )


@contextmanager
def _open_cached(room: DistillationContext) -> Iterator[TrainingSetup]:
    """Fill the teacher cache, let the teacher go, and learn from the cache.

    The main process captures and checks; the others wait, and read what it wrote.
    """
    recipe, teacher = room.recipe, require_local(room.teacher)
    folder = Path(recipe.targets.cache) if recipe.targets.cache else room.job.scratch / "cache"
    folder = room.ranks.share_path(folder)
    header = room.ranks.on_main(lambda: teacher.header(recipe, room.rows, room.precision))

    def capture() -> None:
        with LogitCache.open(folder, header) as cache:
            heard = [lesson.by_teacher for lesson in select_reached(recipe, room.lessons)]
            fill_cache(cache, teacher, heard, room.job)

    room.ranks.on_main(capture)
    teacher.unload()
    with LogitCache.open(folder, header) as cache:
        objective = DistillationLoss(recipe.method, rows=room.rows, precision=room.precision)
        yield TrainingSetup(
            make_batch_source(room, cache), objective, {"cache": cache.header.model_dump()}
        )
