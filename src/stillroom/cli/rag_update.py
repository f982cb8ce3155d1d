"""``stillroom rag update``: an index follows its folder."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "update",
    epilog="""
\b
Examples:
  stillroom rag update index
  stillroom rag update index ./documents --json
""",
)
@click.argument("index", type=existing_path)
@click.argument("folder", type=existing_path, required=False)
@click.option("--quiet", is_flag=True, help="Draw no progress.")
@json_option
@debug_option
def command(index: Path, folder: Path | None, quiet: bool, as_json: bool) -> None:
    """Bring an index up to what its folder of documents holds now.

    Readers go on with what they have opened. A killed update goes on where it was when it is run
    again; the index changes once, at the end.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.updating import update_index

    done = update_index(
        index, folder.absolute() if folder else None, reporter=choose_reporter(quiet=quiet)
    )
    if as_json:
        print_json(done.to_json())
        return
    click.echo(str(done))
    click.echo(f"{index}: snapshot {done.snapshot}, digest {done.digest[:16]}")
