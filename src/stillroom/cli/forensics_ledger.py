"""``stillroom forensics ledger``: the lab's ledger, proved row by row."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "ledger",
    epilog="""
\b
Examples:
  stillroom forensics ledger
  stillroom forensics ledger --unmarked run/output
""",
)
@click.option(
    "--unmarked",
    type=existing_path,
    help="A folder whose files have to carry every mark of the lab; those that do not are named.",
)
@json_option
@debug_option
def command(unmarked: Path | None, as_json: bool) -> None:
    """Prove the lab's ledger, row by row."""
    from stillroom.forensics.lab import open_lab
    from stillroom.forensics.marking import unmarked_files

    lab = open_lab()
    rows = lab.ledger.verify()
    found = unmarked_files(unmarked, lab) if unmarked else {}
    if as_json:
        print_json({"lab": str(lab.folder), "rows": rows, "unmarked": found})
    else:
        click.echo(f"{lab.ledger.path}: {rows} rows, each as it was written")
        for name, missing in found.items():
            click.echo(f"{name}: lacks {', '.join(missing)}")
        if unmarked and not found:
            click.echo(f"{unmarked}: every media file carries every mark")
    if found:
        raise click.exceptions.Exit(1)
