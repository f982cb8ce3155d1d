"""Logit caches filled by one local teacher, with or without a job that trains."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.distill.data.preparation import prepare_data
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.logit_cache.cache import CacheCoverage, LogitCache, describe_cache
from stillroom.distill.logit_cache.capture import CacheCost, capture_teacher, estimate_cache_cost
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.settings import LiveTargetSettings, PruneSettings
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.errors import DataError, RecipeError
from stillroom.jobs import Estimate, Job, Reporter, check_fits, describe_machine
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.objects import resolve_local
from stillroom.recipes import dump_recipe
from stillroom.train.data import split_records
from stillroom.train.precision import choose_precision, limit_threads

if TYPE_CHECKING:
    from stillroom.distill.jobs.logits import LogitsRecipe

__all__ = ["CaptureSummary", "capture_recipe", "fill_cache"]


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """Coverage before a capture, its estimated cost, and the cache afterwards."""

    before: CacheCoverage
    cost: CacheCost | None
    cache: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the summary by name."""
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
    records: Sequence[TokenizedRecord],
    job: Job,
    *,
    only_estimate: bool = False,
) -> CaptureSummary:
    """Capture the records missing from the cache, after logging the estimated cost.

    Raises:
        DataError: If a teacher's value is not finite.
        IntegrityError: If existing rows are damaged.
        ResourceError: If the disk is too small, or another process is writing.
        Cancelled: If cancellation was requested; captured records are kept.
    """
    coverage = cache.cover(records)
    job.say(f"logit cache {cache.folder}: {coverage}")
    cost = None
    missing = cache.lacking(records)
    if missing:
        model = teacher.in_precision(cache.header.precision)
        cost = estimate_cache_cost(model, cache.header, missing)
        job.say(str(cost))
        setting = "capture less: targets.mode sampled is the smallest"
        need = Estimate(disk_bytes=cost.size_bytes, disk_knob=setting)
        check_fits(need, describe_machine(cache.folder), str(cache.folder))
        if not only_estimate:
            capture_teacher(model, records, cache, job)
    if not only_estimate:
        cache.verify()
    return CaptureSummary(coverage, cost, describe_cache(cache))


def capture_recipe(
    recipe: LogitsRecipe, folder: Path, *, only_estimate: bool = False, reporter: Reporter
) -> CaptureSummary:
    """Fill a cache for a recipe without training; a repeated call continues.

    Raises:
        RecipeError: If the recipe stores no distributions: its targets are live.
        DataError: If records or cache cannot be used.
        ResourceError: If the disk is too small, or another process is writing.
    """
    if isinstance(recipe.targets, LiveTargetSettings):
        raise RecipeError(
            "targets.mode live stores nothing that could be captured without a run",
            code="distill.nothing-kept",
            where="targets.mode",
            expected="top_k, sampled or dense",
            next="change targets.mode, or run the recipe: stillroom run",
        )
    with _open_job(recipe, folder, reporter) as job, limit_threads(recipe.train.threads):
        teacher = LocalTeacher.find(recipe.teacher, job)
        prepared = prepare_data(
            recipe,
            split_records(resolve_local(recipe.records)),
            teacher.tokenizer,
            job,
            teacher=recipe.teacher,
            rationale=recipe.rationale,
            context=recipe.context,
        )
        records = [record.teacher_view for record in prepared.tokenized]
        header = teacher.header(
            recipe.targets,
            _count_rows(recipe, teacher),
            choose_precision(recipe.train.precision, next(teacher.model.parameters()).device),
            temperature=recipe.method.temperature,
            seed=recipe.seed,
        )
        with LogitCache.open(folder, header) as cache:
            return fill_cache(cache, teacher, records, job, only_estimate=only_estimate)


def _count_rows(recipe: LogitsRecipe, teacher: LocalTeacher) -> int:
    """Return the number of vocabulary rows that a run of the recipe shares."""
    if isinstance(recipe.student, PruneSettings):
        return LMHead.of(teacher.model).rows
    student, tokenizer = load_causal_lm(resolve_checkpoint(recipe.student), dtype="float32")
    return count_shared_rows(teacher, student, tokenizer)


@contextmanager
def _open_job(recipe: LogitsRecipe, folder: Path, reporter: Reporter) -> Iterator[Job]:
    """Yield a job with journals next to the cache; they are removed on success."""
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
