"""``stillroom rag delete``: documents leave an index at once."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "delete",
    epilog="""
\b
Examples:
  stillroom rag delete index notes/2019.md
  stillroom rag delete index drafts/ "*.tmp.md"
""",
)
@click.argument("index", type=existing_path)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@json_option
@debug_option
def command(index: Path, paths: tuple[str, ...], as_json: bool) -> None:
    """Delete documents from an index, by path, folder/ or pattern.

    Files are not touched: one that still lies in the folder comes back with the next update.
    """
    from stillroom.rag.upkeep import delete_documents

    snapshot = delete_documents(index, paths)
    if as_json:
        print_json({"snapshot": snapshot.number, "digest": snapshot.digest, **snapshot.counts})
        return
    click.echo(
        f"{index}: snapshot {snapshot.number}, {snapshot.documents} documents, "
        f"digest {snapshot.digest[:16]}"
    )
