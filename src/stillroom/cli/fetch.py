"""``stillroom fetch``: bring a published job's folder here."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "fetch",
    epilog="""
\b
Examples:
  stillroom fetch s3://models/merged merged
  stillroom fetch s3://data/records runs/records --json
""",
)
@click.argument("address")
@click.argument("folder", type=existing_path)
@json_option
@debug_option
def command(address: str, folder: Path, as_json: bool) -> None:
    """Bring a published job's folder here.

    Its digests are recomputed, as stillroom verify does.

    Credentials come from the environment, as for stillroom publish.
    """
    from stillroom.errors import IntegrityError
    from stillroom.objects import fetch
    from stillroom.provenance import read_artifact, verify

    came = fetch(address, folder)
    for finding in verify(folder, parents=False):
        raise IntegrityError(
            f"{finding.path} {finding.what}",
            code="integrity.changed",
            where=address,
            expected="the bytes that artifact.json names",
            next="publish the folder again",
        )
    digest = read_artifact(folder).digest
    if as_json:
        print_json({"out": str(folder), "files": came, "digest": digest})
    else:
        click.echo(f"{folder}: {came} files, {digest}")
