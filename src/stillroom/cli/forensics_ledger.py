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
  stillroom forensics ledger --unmarked run/output --unmarked other/output --json
""",
)
@click.option(
    "--unmarked",
    type=existing_path,
    multiple=True,
    help="A folder whose media have to carry every mark of the lab; those that do not are named. "
    "May be repeated.",
)
@json_option
@debug_option
def command(unmarked: tuple[Path, ...], as_json: bool) -> None:
    """Prove the lab's ledger, row by row.

    Exit code 1 if a file lacks a mark, or a folder that is named holds no media.
    """
    from stillroom.forensics.lab import open_lab
    from stillroom.forensics.marking import unmarked_files
    from stillroom.jobs import plain_line

    lab = open_lab()
    rows = lab.ledger.verify()
    found = {place: unmarked_files(place, lab) for place in unmarked}
    lacking = {
        str(place if place.is_file() else place / name): missing
        for place, names in found.items()
        for name, missing in names.items()
    }
    if as_json:
        print_json({"lab": str(lab.folder), "rows": rows, "unmarked": lacking})
    else:
        click.echo(f"{lab.ledger.path}: {rows} rows, each as it was written")
        for name, missing in lacking.items():
            click.echo(plain_line(f"{name}: lacks {', '.join(missing)}"))
        for place, names in found.items():
            if not names:
                click.echo(plain_line(f"{place}: every media file carries every mark"))
    if lacking:
        raise click.exceptions.Exit(1)
