"""``stillroom forensics provenance verify``: what files say of their own origin."""

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
  stillroom forensics provenance verify photo.jpg
  stillroom forensics provenance verify *.jpg --official C2PA-TRUST-LIST.pem --trust ca/ca.pem
""",
)
@click.argument("files", type=existing_path, nargs=-1, required=True)
@click.option(
    "--trust", type=existing_path, multiple=True, help="Authorities that you trust, as PEM."
)
@click.option(
    "--official", type=existing_path, multiple=True, help="The C2PA's own trust list, as PEM."
)
@click.option(
    "--interim",
    type=existing_path,
    multiple=True,
    help="The interim list that was frozen at the start of 2026, as PEM.",
)
@click.option(
    "--remote",
    is_flag=True,
    help="Fetch manifests that lie elsewhere, ask OCSP; needs the network.",
)
@json_option
@debug_option
def command(
    files: tuple[Path, ...],
    trust: tuple[Path, ...],
    official: tuple[Path, ...],
    interim: tuple[Path, ...],
    remote: bool,
    as_json: bool,
) -> None:
    """Say of files whether they are as signed, by whom, and whether that is trusted.

    Three findings that are never mixed. A file without credentials has no provenance, which says
    nothing about whether it is real. Exit code 1 if a file was changed since it was signed, or
    cannot be read.
    """
    from stillroom.errors import StillroomError
    from stillroom.forensics.lab import has_lab, open_lab
    from stillroom.forensics.signing import open_lists, verify_file
    from stillroom.jobs import plain_line

    lab = open_lab() if has_lab() else None
    lists = open_lists(official=official, interim=interim, user=trust, lab=lab)
    results, failed = {}, False
    for file in files:
        try:
            found = verify_file(file, lists, remote=remote)
        except StillroomError as error:
            click.echo(str(error), err=True)
            failed = True
            continue
        failed = failed or found.integrity in {"broken", "unreadable"}
        results[str(file)] = found.to_json()
        if not as_json:
            click.echo(plain_line(str(file)))
            for line in found.lines():
                click.echo(f"  {line}")
    if as_json:
        print_json({"files": results})
    if failed:
        raise click.exceptions.Exit(1)
