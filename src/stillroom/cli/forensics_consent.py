"""``stillroom forensics consent``: a record of who agreed to what."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "consent",
    epilog="""
\b
Examples:
  stillroom forensics consent anna/ --who "Anna Example" --basis "signed form of 3 May" \\
    --scope sbi --expires 2027-05-03 --out anna.json
  stillroom run forge.yaml --out set faces.folder=anna faces.consent=anna.json
  stillroom forensics consent voices/ --who "Anna Example" --basis "signed form of 3 May" \\
    --scope vocoder --expires 2027-05-03 --out voices.json
""",
)
@click.argument("files", type=existing_path, nargs=-1, required=True)
@click.option("--who", required=True, help="The person shown or heard.")
@click.option("--basis", required=True, help="What the consent stands on: a form, a contract.")
@click.option(
    "--scope", multiple=True, required=True, help="A forgery or edit that is agreed to, or 'any'."
)
@click.option(
    "--expires", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The last day it holds."
)
@click.option("--out", type=existing_path, required=True, help="The record to write.")
@json_option
@debug_option
def command(
    files: tuple[Path, ...],
    who: str,
    basis: str,
    scope: tuple[str, ...],
    expires: datetime,
    out: Path,
    as_json: bool,
) -> None:
    """Write a record of who agreed to the use of which pictures or recordings.

    The record holds the files' digests: it serves for these files and no others. Of a folder all
    pictures and recordings below it are named.
    """
    from stillroom.forensics.consent import list_agreed, write_consent

    named = [one for file in files for one in list_agreed(file)]
    made = write_consent(out, named, who=who, basis=basis, scope=scope, expires=expires.date())
    if as_json:
        print_json({"id": made.id, "files": len(made.files), "path": str(out)})
        return
    count = f"{len(made.files)} file{'' if len(made.files) == 1 else 's'}"
    click.echo(f"{out}: consent {made.id} of {made.who} for {count}")
