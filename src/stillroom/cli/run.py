"""``stillroom run``: do the job that a recipe describes."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "run",
    epilog="""
\b
Examples:
  stillroom run recipes/merge-ties.yaml --out merged
  stillroom run recipes/merge-ties.yaml --out merged method.density=0.3
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the artifact.")
@json_option
@job_options
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Run a recipe of any kind."""
    from stillroom.cli.talk import tell_run
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter
    from stillroom.jobs.processes import process_rank
    from stillroom.recipes import load_recipe

    artifact = run_recipe(
        load_recipe(recipe, overrides),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if process_rank() > 0:
        return  # the first process tells
    if as_json:
        print_json({"out": str(out), "kind": artifact.kind, "digest": artifact.digest})
    else:
        tell_run(out, artifact)
