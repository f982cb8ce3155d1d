"""Filling a teacher cache, within a job or without one: cost and disk first, then the teacher."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.distill.cache import Coverage, TeacherCache, describe_cache
from stillroom.distill.cache_header import CacheHeader
from stillroom.distill.cache_probe import CacheCost, probe_cache
from stillroom.distill.capture import capture_teacher
from stillroom.distill.encode import Lesson
from stillroom.distill.head import Head
from stillroom.distill.lessons import split_records
from stillroom.distill.preparing import prepare_lessons
from stillroom.distill.prune_settings import PruneSettings
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teacher import Teacher, common_rows
from stillroom.errors import DataError, RecipeError
from stillroom.jobs import Estimate, Job, Reporter, check_fits, describe_machine
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.objects import local
from stillroom.recipes import dump_recipe
from stillroom.train.precision import choose_precision, fixed_threads

__all__ = ["Filled", "capture_recipe", "fill_cache"]


@dataclass(frozen=True, slots=True)
class Filled:
    """What was wanted and there before, what the rest costs, what the cache holds afterwards."""

    before: Coverage
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
    cache: TeacherCache,
    teacher: Teacher,
    lessons: Sequence[Lesson],
    job: Job,
    *,
    only_estimate: bool = False,
) -> Filled:
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
        cost = probe_cache(model, cache.header, missing)
        job.say(str(cost))
        knob = "capture less: targets.mode sampled keeps the least"
        need = Estimate(disk_bytes=cost.size_bytes, disk_knob=knob)
        check_fits(need, describe_machine(cache.folder), str(cache.folder))
        if not only_estimate:
            capture_teacher(model, lessons, cache, job)
    if not only_estimate:
        cache.verify()
    return Filled(before, cost, describe_cache(cache))


def capture_recipe(
    recipe: DistillRecipe, folder: Path, *, only_estimate: bool = False, reporter: Reporter
) -> Filled:
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
    named = _refuse_others(recipe)
    with _working(recipe, folder, reporter) as job, fixed_threads(recipe.train.threads):
        teacher = Teacher.find(named, job)
        prepared = prepare_lessons(
            recipe, split_records(local(recipe.records)), teacher.tokenizer, job
        )
        lessons = [lesson.by_teacher for lesson in prepared.lessons]
        header = _header_of(recipe, teacher)
        with TeacherCache.open(folder, header) as cache:
            return fill_cache(cache, teacher, lessons, job, only_estimate=only_estimate)


def _refuse_others(recipe: DistillRecipe) -> str:
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


def _header_of(recipe: DistillRecipe, teacher: Teacher) -> CacheHeader:
    """Return the header that a run of the recipe would ask for."""
    device = next(teacher.model.parameters()).device
    rows = Head.of(teacher.model).rows
    if not isinstance(recipe.student, PruneSettings):
        student, tokenizer = load_causal_lm(resolve_checkpoint(recipe.student), dtype="float32")
        rows = common_rows(teacher, student, tokenizer)
    return teacher.header(recipe, rows, choose_precision(recipe.train.precision, device))


@contextmanager
def _working(recipe: DistillRecipe, folder: Path, reporter: Reporter) -> Iterator[Job]:
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
