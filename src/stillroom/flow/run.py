"""Entry points that run, estimate, outline and preflight a recipe of any kind.

One job runs here, a flow in ``pipeline``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from stillroom.flow.job import estimate_job, find_job_kind, require_job_extras, run_job
from stillroom.flow.recipe import FlowRecipe, engine_of
from stillroom.jobs import (
    Estimate,
    Job,
    Reporter,
    check_fits,
    describe_machine,
    tell_warnings,
)
from stillroom.jobs.engines import require_engine
from stillroom.jobs.preflight import PreflightReport, count_processes, require_single_process
from stillroom.provenance import Artifact, digest_text, read_artifact
from stillroom.recipes import Recipe, dump_recipe

__all__ = [
    "estimate_recipe",
    "outline_recipe",
    "preflight_recipe",
    "require_recipe_extras",
    "run_recipe",
]


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Artifact:
    """Run a recipe of any kind.

    Without a ``reporter``, settings without effect are reported as Python warnings.

    Raises:
        StillroomError: From the ``run`` function of the kind.
    """
    if reporter is None:
        tell_warnings(recipe.describe_unused(), None)
    if (
        count_processes() > 1
        and not isinstance(recipe, FlowRecipe)
        and find_job_kind(recipe.kind).is_distributed
    ):
        return _run_distributed(recipe, out, resume=resume, overwrite=overwrite, reporter=reporter)
    require_single_process(f"a recipe of kind {recipe.kind}")
    for part in _list_recipes(recipe):
        require_engine(engine_of(part))
    if isinstance(recipe, FlowRecipe):
        from stillroom.flow.pipeline import FlowRun  # a single job need not import the flow modules

        return FlowRun(recipe, out, reporter).run(resume=resume, overwrite=overwrite)
    job = _start_job(recipe, out, resume=resume, overwrite=overwrite, reporter=reporter)
    return run_job(recipe, job) if job is not None else read_artifact(out)


def _list_recipes(recipe: Recipe) -> list[Recipe]:
    """Return a recipe, or the recipes of a flow's steps."""
    if isinstance(recipe, FlowRecipe):
        return [recipe, *(step.recipe for step in recipe.steps.values())]
    return [recipe]


def _start_job(
    recipe: Recipe, out: Path, *, resume: bool, overwrite: bool, reporter: Reporter | None
) -> Job | None:
    """Start a job if the machine's resources suffice; return None if it was already finished."""
    text = dump_recipe(recipe)
    if resume and Job.recover(out) and read_artifact(out).recipe_digest == digest_text(text):
        return None
    require_recipe_extras(recipe)
    check_fits(estimate_recipe(recipe), describe_machine(out), recipe.kind)
    return Job.start(
        out, text, seed=recipe.seed, resume=resume, overwrite=overwrite, reporter=reporter
    )


def _run_distributed(
    recipe: Recipe, out: Path, *, resume: bool, overwrite: bool, reporter: Reporter | None
) -> Artifact:
    """Run a job as one of several processes.

    The first one writes; the others write their own logs to a temporary folder.
    """
    from stillroom.train.distributed import ProcessGroup

    with ProcessGroup() as ranks:
        jobs: list[Job] = []

        def begin() -> bool:
            job = _start_job(recipe, out, resume=resume, overwrite=overwrite, reporter=reporter)
            jobs.extend([job] if job is not None else [])
            return job is not None

        if not ranks.on_main(begin):
            return read_artifact(out)
        if ranks.is_main:
            return run_job(recipe, jobs[0])
        with tempfile.TemporaryDirectory() as folder:
            text = dump_recipe(recipe)
            return run_job(recipe, Job.start(Path(folder) / "job", text, seed=recipe.seed))


def require_recipe_extras(recipe: Recipe) -> None:
    """Refuse a recipe whose job, or a step, needs a package that is not installed.

    Raises:
        MissingExtraError: Naming the extra.
    """
    for part in _list_recipes(recipe):
        if not isinstance(part, FlowRecipe):
            require_job_extras(part)


def estimate_recipe(recipe: Recipe) -> Estimate:
    """Return the estimate of a recipe; for a flow, of the steps whose inputs exist already."""
    if isinstance(recipe, FlowRecipe):
        from stillroom.flow.pipeline import FlowRun

        return FlowRun(recipe, Path("run"), None).estimate()
    return estimate_job(recipe)


def outline_recipe(recipe: Recipe) -> list[str]:
    """Return lines that draw the steps inside a job, for kinds whose recipes have some."""
    if isinstance(recipe, FlowRecipe):
        return []
    outline = find_job_kind(recipe.kind).outline
    return outline(recipe) if outline is not None else []


def preflight_recipe(
    recipe: Recipe,
    out: Path,
    *,
    loads: bool = False,
    fetch: bool = False,
    machine: bool = True,
) -> PreflightReport | None:
    """Return the problems of a job before it starts; None for kinds without a check.

    Steps of a flow are checked when each starts. ``loads`` has models loaded and compared,
    ``fetch`` downloads checkpoints on a hub for that, ``machine`` compares memory and disk with the
    free amounts.
    """
    preflight = None if isinstance(recipe, FlowRecipe) else find_job_kind(recipe.kind).preflight
    if preflight is None:
        return None
    return preflight(recipe, out, fetch=fetch, loads=loads, machine=machine)
