"""``stillroom make``: the main job."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "make",
    epilog="""
\b
Examples:
  stillroom make ./documents --out run
  stillroom make ./documents --out run inputs.teacher=hub:HuggingFaceTB/SmolLM2-360M-Instruct
""",
)
@click.argument("folder", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the run.")
@json_option
@job_options
def command(
    folder: Path,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Turn a folder of documents into a model you own.

    Runs the recipe that `stillroom new flow/make` prints: parse and index, write grounded records,
    distill a student, merge, evaluate. Run again after a change: only what changed is done again.
    """
    from stillroom.cli.talk import tell_run
    from stillroom.flow import run_make
    from stillroom.jobs import choose_reporter

    artifact = run_make(
        folder,
        out,
        overrides=overrides,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"run": str(out), "digest": artifact.digest, "details": dict(artifact.details)})
    else:
        tell_run(out, artifact)
