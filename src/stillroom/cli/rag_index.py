"""``stillroom rag index``: parse and index a folder."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "index",
    epilog="""
\b
Examples:
  stillroom rag index ./documents --out index
  stillroom rag index ./documents --out index chunker.size=120
""",
)
@click.argument("folder")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="The folder of the index.")
@json_option
@job_options
def command(
    folder: str,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Parse and index a folder of documents."""
    from stillroom.cli.talk import tell_run
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter
    from stillroom.objects import is_address
    from stillroom.recipes import parse_recipe

    place = folder if is_address(folder) else str(Path(folder).absolute())
    text = f"version: 1\nkind: rag\ndocuments: {place!r}\n"
    artifact = run_recipe(
        parse_recipe(text, "rag index", overrides, folder=Path.cwd()),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, "details": dict(artifact.details)})
    else:
        tell_run(out, artifact)
