"""``stillroom forensics benchmark compare``: two detectors on the same items."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "compare",
    epilog="""
\b
Examples:
  stillroom forensics benchmark compare ours.json theirs.json
  stillroom forensics benchmark compare ours.json theirs.json --json
""",
)
@click.argument("ours", type=existing_path)
@click.argument("theirs", type=existing_path)
@json_option
@debug_option
def command(ours: Path, theirs: Path, as_json: bool) -> None:
    """Compare two detectors that were measured under one protocol.

    Areas on the same items by DeLong's test, and the difference's interval over groups. Figures of
    different protocols are refused, and what differs is named.
    """
    from stillroom.forensics.standing import compare_standings, read_standing

    first, second = read_standing(ours), read_standing(theirs)
    found = compare_standings(first, second)
    if as_json:
        names = {"ours": first.detector, "theirs": second.detector}
        protocol = {"protocol_digest": first.protocol.digest}
        print_json({**names, **protocol, **dataclasses.asdict(found)})
        return
    click.echo(f"{first.detector} against {second.detector}: {found.line()}")
