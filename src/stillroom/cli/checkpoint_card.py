"""``stillroom checkpoint card``: a model card that follows from the lineage."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "card",
    epilog="""
\b
Examples:
  stillroom checkpoint card run
  stillroom checkpoint card run --name "Reference student" --out README.md
""",
)
@click.argument("checkpoint", type=existing_path)
@click.option("--name", default="", help="What the model is called; by default the folder's name.")
@click.option(
    "--report",
    "reports",
    type=existing_path,
    multiple=True,
    help="A job that evaluated it; a run brings its own. May be repeated.",
)
@click.option("--out", type=existing_path, help="A file to write; printed where none is given.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(
    checkpoint: Path,
    name: str,
    reports: tuple[Path, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint's model card from its lineage.

    Base models, records with their shares of human and synthetic text, method, evaluation with
    intervals, limits and digests, with the front matter that the Hugging Face hub reads.
    """
    from stillroom.errors import DataError
    from stillroom.flow.card import card_of, gather_lineage
    from stillroom.jobs.files import atomic_write

    if out is not None and out.exists() and not overwrite:
        raise DataError(
            f"{out} exists already",
            code="data.exists",
            expected="the name of a new file",
            next="give another --out, or --overwrite",
        )
    text = card_of(gather_lineage(checkpoint, reports), name)
    if out is not None:
        with atomic_write(out) as file:
            file.write(text)
    if as_json:
        print_json({"card": text, "out": str(out) if out else None})
    else:
        click.echo(f"{out}: {len(text.splitlines())} lines" if out else text, nl=out is not None)
