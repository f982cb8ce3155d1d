"""``stillroom verify``: recompute digests and name what changed."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "verify",
    epilog="""
\b
Examples:
  stillroom verify run
  stillroom verify run/steps/merge-1a2b3c4d5e6f --json
""",
)
@click.argument("path", type=existing_path)
@json_option
@debug_option
def command(path: Path, as_json: bool) -> None:
    """Recompute digests and name what changed."""
    from stillroom.errors import IntegrityError, Problem
    from stillroom.provenance import verify

    findings = verify(path)
    if as_json:
        print_json({"path": str(path), "findings": [finding.to_json() for finding in findings]})
    if findings:
        raise IntegrityError(
            [
                Problem(
                    f"{finding.path} {finding.what}",
                    "integrity.changed",
                    str(path),
                    "the bytes that artifact.json names",
                    "restore the file, or make the run again",
                )
                for finding in findings
            ]
        )
    if not as_json:
        click.echo(f"{path}: every digest is as recorded")
