"""``stillroom forensics benchmark audit``: whether a benchmark measures what it says."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "audit",
    epilog="""
\b
Examples:
  stillroom forensics benchmark audit run/output
  stillroom forensics benchmark audit manifest.csv --json
""",
)
@click.argument("manifest", type=existing_path)
@json_option
@debug_option
def command(manifest: Path, as_json: bool) -> None:
    """Look for leaks, near duplicates, and files that tell fake from real by themselves.

    A leak is a person, a recording or the same bytes in two splits. The last audit trains a
    classifier on format, size, tables and tags alone: its area has to be near 0.5. Exit code 1 if
    something is found.
    """
    from stillroom.forensics.audits import audit_items
    from stillroom.forensics.items import find_manifest, read_items

    file = find_manifest(manifest)
    found = audit_items(read_items(file), file.parent)
    if as_json:
        print_json({"manifest": str(file), **found.to_json()})
    else:
        for line in found.lines():
            click.echo(line)
    if not found.is_clean:
        raise click.exceptions.Exit(1)
