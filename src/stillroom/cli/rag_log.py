"""``stillroom rag log``: the snapshots of an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "log",
    epilog="""
\b
Examples:
  stillroom rag log index
  stillroom rag log index --json
""",
)
@click.argument("index", type=existing_path)
@json_option
@debug_option
def command(index: Path, as_json: bool) -> None:
    """List the snapshots of an index that can be asked, newest first."""
    from stillroom.rag.upkeep import list_snapshots

    known = list_snapshots(index)[::-1]
    if as_json:
        print_json({"snapshots": [asdict(snapshot) for snapshot in known]})
        return
    for snapshot in known:
        click.echo(
            f"{snapshot.number:>5}  {snapshot.digest[:16]}  {snapshot.made[:19]}  "
            f"{snapshot.documents:>7} documents {snapshot.passages:>8} passages  {snapshot.reason}"
        )
