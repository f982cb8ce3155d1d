"""``stillroom forensics trace``: the lab's own files, found by their watermark."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "trace",
    epilog="""
\b
Examples:
  stillroom forensics trace screenshot.png
  stillroom forensics trace downloads/*.jpg --json
""",
)
@click.argument("files", type=existing_path, nargs=-1, required=True)
@json_option
@debug_option
def command(files: tuple[Path, ...], as_json: bool) -> None:
    """Find the lab's own files by their watermark, stripped or not.

    Finds files of this lab alone, also after recompression, resizing, or a crop of up to 10 % a
    side. Without a mark nothing is said about a file. A mark that was copied to other content is
    told as that; a small change of a marked file is not.
    """
    from stillroom.errors import DataError
    from stillroom.forensics.lab import open_lab
    from stillroom.forensics.tracing import trace_file
    from stillroom.jobs import plain_line

    lab = open_lab()
    results, failed = {}, False
    for file in files:
        try:
            found = trace_file(file, lab)
        except DataError as error:
            click.echo(str(error), err=True)
            failed = True
            continue
        results[str(file)] = found.to_json()
        if not as_json:
            click.echo(plain_line(f"{file}: {found.line()}"))
    if as_json:
        print_json({"files": results})
    if failed:
        raise click.exceptions.Exit(1)
