"""Execution of one job by the room that its recipe names."""

from __future__ import annotations

import importlib
from pathlib import Path

from stillroom.flow.recipe import engine_of
from stillroom.jobs import Estimate, Job
from stillroom.jobs.engines import Engine, open_engine
from stillroom.jobs.files import full_disk_as_error
from stillroom.provenance import Artifact
from stillroom.recipes import Recipe
from stillroom.records import Origin
from stillroom.text.reader import use_origin_check

__all__ = [
    "estimate_job",
    "run_job",
]


def _examine_origin(path: Path, origin: Origin) -> tuple[Origin, tuple[str, ...]]:
    """Run a forensic check of a file's origin; forensics is imported for the first file."""
    from stillroom.forensics.check.origin import examine_origin

    return examine_origin(path, origin)


def estimate_job(recipe: Recipe) -> Estimate:
    """Return the estimate of one job, from the room of its recipe's kind."""
    estimate = importlib.import_module(f"stillroom.{recipe.kind}.run").estimate(recipe)
    if not isinstance(estimate, Estimate):
        raise TypeError(f"stillroom.{recipe.kind}.run.estimate returned no Estimate")
    return estimate


def run_job(recipe: Recipe, job: Job, engine: Engine | None = None) -> Artifact:
    """Run a started job in the room of its recipe's kind.

    Args:
        recipe: Recipe of one job.
        job: Started job.
        engine: Engine opened by a flow, used if the recipe names none.
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
    job.engine = engine
    if engine.is_remote:
        job.event("engine", name=engine.name, workers=engine.num_workers)
    room = importlib.import_module(f"stillroom.{recipe.kind}.run")
    # Rooms write with many libraries, whose errors for a full disk differ: they are unified here.
    with full_disk_as_error(job.out):
        try:
            with job.interruptible(), use_origin_check(_examine_origin):
                artifact = room.run(recipe, job)
        finally:
            job.close()
    if not isinstance(artifact, Artifact):
        raise TypeError(f"stillroom.{recipe.kind}.run.run returned no Artifact")
    return artifact
