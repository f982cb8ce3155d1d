"""``stillroom rag compact``: one segment, and nothing of older snapshots."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "compact",
    epilog="""
\b
Examples:
  stillroom rag compact index
  stillroom rag compact index --json
""",
)
@click.argument("index", type=existing_path)
@json_option
@debug_option
def command(index: Path, as_json: bool) -> None:
    """Merge an index's segments and remove what only older snapshots need."""
    from dataclasses import asdict

    from stillroom.rag.upkeep import compact_index

    done = compact_index(index)
    if as_json:
        print_json(asdict(done))
        return
    click.echo(
        f"{index}: {done.bytes_before / 1e6:.1f} MB in {done.segments_before} segments before, "
        f"{done.bytes_after / 1e6:.1f} MB in {done.segments_after} after"
    )
    if done.held:
        click.echo(
            f"{done.held} older snapshots stay: one is being read. What they need goes with the "
            "next change after that ends."
        )
