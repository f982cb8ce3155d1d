"""``stillroom merge verify``: make a merge's tensors again and compare the bytes."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "verify",
    epilog="""
\b
Examples:
  stillroom merge verify merged
  stillroom merge verify merged --all --json
""",
)
@click.argument("folder", type=existing_path)
@click.option(
    "--share",
    type=FiniteRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="How many of the tensors.",
)
@click.option("--all", "everything", is_flag=True, help="Every tensor.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which tensors are drawn.",
)
@json_option
@debug_option
def command(folder: Path, share: float, everything: bool, seed: int, as_json: bool) -> None:
    """Make a merge's tensors again and compare the bytes."""
    from stillroom.merge.verify import verify_merge

    found = verify_merge(
        folder,
        share=1.0 if everything else share,
        seed=seed,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json({"path": str(folder), **found.to_json()})
    found.check(folder)
    if not as_json:
        click.echo(
            f"{folder}: {len(found.inputs)} inputs are what was merged; "
            f"{len(found.replayed)} of {found.tensors} tensors made again, to the same bytes"
        )
