"""Execution of one job by the room that its recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.flow.inputs import describe_text_records
from stillroom.flow.recipe import engine_of
from stillroom.jobs import Estimate, Job
from stillroom.jobs.engines import Engine, open_engine
from stillroom.jobs.extras import require_extras
from stillroom.jobs.kind import JobKind
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import Artifact
from stillroom.recipes import Recipe, import_kind_module
from stillroom.records import Origin
from stillroom.records.origin import use_origin_check

__all__ = [
    "estimate_job",
    "find_job_kind",
    "require_job_extras",
    "run_job",
]


def _examine_origin(path: Path, origin: Origin) -> tuple[Origin, tuple[str, ...]]:
    """Run a forensic check of a file's origin; forensics is imported for the first file."""
    from stillroom.forensics.check.origin import examine_origin

    return examine_origin(path, origin)


def find_job_kind(kind: str) -> JobKind[Any]:
    """Return the declaration of a kind.

    Raises:
        RecipeError: If there is no such kind.
    """
    declared = import_kind_module(kind).JOB_KIND
    if not isinstance(declared, JobKind):
        raise TypeError(f"JOB_KIND of {kind} is no JobKind")
    return declared


def estimate_job(recipe: Recipe) -> Estimate:
    """Return the estimate of one job, as its kind declares it."""
    return find_job_kind(recipe.kind).estimate(recipe)


def require_job_extras(recipe: Recipe) -> None:
    """Refuse a job whose packages are not installed.

    Raises:
        MissingExtraError: Naming the extra.
    """
    kind = find_job_kind(recipe.kind)
    require_extras(kind.extras, kind.run, f"a job of kind {recipe.kind}")


def run_job(recipe: Recipe, job: Job, engine: Engine | None = None) -> Artifact:
    """Run a started job in the room of its recipe's kind.

    ``engine`` is one that a flow opened, used if the recipe names none.
    """
    recipe_engine = engine_of(recipe)
    if recipe_engine is not None and engine is not None and recipe_engine.ray is None:
        return _run_on_engine(engine, recipe, job)
    try:
        with open_engine(recipe_engine, job.say) as opened:
            return _run_on_engine(opened, recipe, job)
    finally:
        job.close()


def _run_on_engine(engine: Engine, recipe: Recipe, job: Job) -> Artifact:
    kind = find_job_kind(recipe.kind)
    job.engine = engine
    if kind.replayer is not None:
        job.segment_journals, job.timed_keys = kind.replayer.journals, kind.replayer.timed
    if engine.is_remote:
        job.event("engine", name=engine.name, workers=engine.num_workers)
    for line in (*recipe.describe_unused(), *describe_text_records(recipe)):
        job.warn(line)
    # Rooms write with many libraries, whose errors for a full disk differ: they are unified here.
    with full_disk_as_error(job.out):
        try:
            with job.interruptible(), use_origin_check(_examine_origin):
                artifact = kind.run(recipe, job)
        except (
            ImportError,
            RecipeError,
            DataError,
            CheckpointError,
        ):  # to be repeated once the package is installed, or the recipe or an input corrected
            job.discard_empty()
            raise
        finally:
            job.close()
    return artifact
