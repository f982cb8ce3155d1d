"""``stillroom merge run``: do a merge, ours or one that was written for mergekit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["arithmetic_option", "command"]

arithmetic_option = click.option(
    "--arithmetic",
    type=click.Choice(["paper", "mergekit"]),
    help="Compute as the papers say, or bit for bit as mergekit does; default what the recipe "
    "says, and mergekit for a mergekit file.",
)


@click.command(
    "run",
    epilog="""
\b
Examples:
  stillroom merge run recipes/merge-ties.yaml --out merged
  stillroom merge run recipes/merge-mergekit.yml --out merged
  stillroom merge run recipes/merge-mergekit.yml --arithmetic paper --out merged
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the checkpoint.")
@arithmetic_option
@json_option
@job_options
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    arithmetic: Literal["paper", "mergekit"] | None,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Merge as a recipe says; a mergekit file runs unchanged.

    Where a mergekit file describes several merges, those before the last lie in OUT.parts.
    """
    from stillroom.cli.talk import tell_run
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter
    from stillroom.merge.loading import load_merges

    parts = out.with_name(f"{out.name}.parts")
    reporter = choose_reporter(quiet=quiet)
    merges = load_merges(
        recipe,
        overrides,
        arithmetic=arithmetic,
        parts=parts,
        say=lambda note: click.echo(note, err=True),
    )
    if len(merges) > 1:
        parts.mkdir(parents=True, exist_ok=True)
    for number, (name, merge) in enumerate(merges, 1):
        is_last = number == len(merges)
        target = out if is_last else parts / name
        artifact = run_recipe(
            merge,
            target,
            resume=resume,
            overwrite=overwrite,
            reporter=reporter,
        )
        if not as_json:
            tell_run(target, artifact)
    if as_json:
        print_json({"out": str(out), "kind": artifact.kind, "digest": artifact.digest})
