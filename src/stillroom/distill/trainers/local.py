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

    Args:
        cache: Cache opened with the header of this teacher.
        teacher: Loaded only if something is missing.
        records: Records as the teacher reads them.
        job: Progress and cancellation.
        only_estimate: Whether to capture nothing.

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
    recipe: DistillRecipe, folder: Path, *, only_estimate: bool = False, reporter: Reporter
) -> CaptureSummary:
    """Fill a cache for a recipe without training; a repeated call continues.

    Args:
        recipe: Distillation recipe; its ``targets.cache`` is ignored.
        folder: Folder of the cache.
        only_estimate: Report coverage and cost, and capture nothing.
        reporter: Progress reporter.

    Raises:
        RecipeError: If the recipe does not cache distributions of its teacher.
        DataError: If records or cache cannot be used.
        ResourceError: If the disk is too small, or another process is writing.
    """
    reference = _check_recipe(recipe)
    with _open_job(recipe, folder, reporter) as job, limit_threads(recipe.train.threads):
        teacher = LocalTeacher.find(reference, job)
        prepared = prepare_data(
            recipe, split_records(resolve_local(recipe.records)), teacher.tokenizer, job
        )
        records = [record.teacher_view for record in prepared.tokenized]
        header = _make_header(recipe, teacher)
        with LogitCache.open(folder, header) as cache:
            return fill_cache(cache, teacher, records, job, only_estimate=only_estimate)


def _check_recipe(recipe: DistillRecipe) -> str:
    """Reject a recipe without cached distributions of one local teacher; return its reference."""
    obstacle = "targets.mode live" if recipe.targets.mode == "live" else ""
    obstacle = "a crossing" if recipe.crossing is not None else obstacle
    if isinstance(recipe.teacher, str) and not obstacle:
        return recipe.teacher
    raise RecipeError(
        f"{obstacle or 'a remote teacher, or several teachers,'} cannot be captured without a run",
        code="distill.nothing-kept",
        where="targets.mode" if obstacle else "teacher",
        expected="one local teacher, targets.mode top_k, sampled or dense, no crossing",
        next="change the recipe, or run it: stillroom run",
    )


def _make_header(recipe: DistillRecipe, teacher: LocalTeacher) -> CacheHeader:
    """Return the header of a cache for a run of the recipe."""
    device = next(teacher.model.parameters()).device
    rows = LMHead.of(teacher.model).rows
    if not isinstance(recipe.student, PruneSettings):
        student, tokenizer = load_causal_lm(resolve_checkpoint(recipe.student), dtype="float32")
        rows = count_shared_rows(teacher, student, tokenizer)
    return teacher.header(recipe, rows, choose_precision(recipe.train.precision, device))


@contextmanager
def _open_job(recipe: DistillRecipe, folder: Path, reporter: Reporter) -> Iterator[Job]:
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


class LocalTeacherTrainer(DistillationTrainer):
    """Trainer for one local checkpoint with the student's vocabulary."""

    @cached_property
    def _teacher(self) -> LocalTeacher:
        return require_local(self.first)

    @property
    @override
    def is_compared(self) -> bool:
        return True

    @override
    def check_compatibility(self, student: Any, tokenizer: Any) -> int:
        return count_shared_rows(self._teacher, student, tokenizer)

    @override
    def build_training(self, context: DistillationContext) -> AbstractContextManager[TrainingSetup]:
        return open_training(context)

    @override
    def metadata(self) -> Mapping[str, Any]:
        checkpoint = self._teacher.checkpoint
        return {"teacher": checkpoint.fingerprint, "teacher_parameters": checkpoint.parameters}


@contextmanager
def open_training(context: DistillationContext) -> Iterator[TrainingSetup]:
    """Open the training setup of the recipe; its resources are released after the body.

    Raises:
        DataError: If a cache cannot be used, or a teacher's value is not finite.
        Cancelled: If cancellation was requested; captured records are kept.
    """
    with _select_training(context) as training:
        yield training


def _select_training(context: DistillationContext) -> AbstractContextManager[TrainingSetup]:
    if context.recipe.rollouts is not None:
        from stillroom.distill.trainers.on_policy import open_on_policy_training

        return open_on_policy_training(context)
    if not context.recipe.method.asks_teacher and not context.recipe.features:
        return nullcontext(make_text_training(context))
    return _open_live(context) if context.recipe.targets.mode == "live" else _open_cached(context)


@contextmanager
def _open_live(context: DistillationContext) -> Iterator[TrainingSetup]:
    """Run the teacher in every step."""
    objective = make_live_loss(context)
    yield TrainingSetup(
        make_batch_source(context, None), objective, {"cache": None}, objective.features
    )


@contextmanager
def _open_cached(context: DistillationContext) -> Iterator[TrainingSetup]:
    """Fill the logit cache, unload the teacher, and train from the cache.

    The main process captures and verifies; the others wait, and read the same cache.
    """
    recipe, teacher = context.recipe, require_local(context.teacher)
    folder = Path(recipe.targets.cache) if recipe.targets.cache else context.job.scratch / "cache"
    folder = context.ranks.share_path(folder)
    header = context.ranks.on_main(lambda: teacher.header(recipe, context.rows, context.precision))

    def capture() -> None:
        with LogitCache.open(folder, header) as cache:
            teacher_records = [
                record.teacher_view for record in select_reached(recipe, context.tokenized)
            ]
            fill_cache(cache, teacher, teacher_records, context.job)

    context.ranks.on_main(capture)
    teacher.unload()
    with LogitCache.open(folder, header) as cache:
        objective = DistillationLoss(recipe.method, rows=context.rows, precision=context.precision)
        yield TrainingSetup(
            make_batch_source(context, cache), objective, {"cache": cache.header.model_dump()}
        )
