"""Run recipes as jobs, for tests that look at their reports or give them a model."""

from stillroom.evaluate import Report
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.recipes import dump_recipe


def run_report(recipe, out, **flags):
    """Run a recipe that ends with a report; give the artifact and the report."""
    artifact = run_recipe(recipe, out, **flags)
    return artifact, Report.from_json(artifact.details)


def run_with_model(run, recipe, out, *, model=None, overwrite=True, resume=False):
    """Run a recipe of a graph with a model instead of the one that it names."""
    job = Job.start(out, dump_recipe(recipe), seed=recipe.seed, overwrite=overwrite, resume=resume)
    try:
        with job.interruptible():
            return run(recipe, job, model=model)
    finally:
        job.close()
