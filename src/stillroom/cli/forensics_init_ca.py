"""``stillroom forensics provenance init-ca``: an authority of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "init-ca",
    epilog="""
\b
Examples:
  stillroom forensics provenance init-ca ca
  stillroom forensics provenance init-ca ca --organization "My newsroom" --days 365
""",
)
@click.argument("folder", type=existing_path)
@click.option(
    "--organization", default="Stillroom lab", show_default=True, help="What readers see as issuer."
)
@click.option(
    "--days",
    type=click.IntRange(1, 10950),
    default=3650,
    show_default=True,
    help="How long the certificates hold.",
)
@json_option
@debug_option
def command(folder: Path, organization: str, days: int, as_json: bool) -> None:
    """Make a certificate authority and a signer that work at once.

    The new signer signs a trial picture, which is read back, before anything is left on disk.
    Nobody trusts the authority but who gives its ca.pem as --trust.
    """
    from stillroom.forensics.certificates import init_ca

    files = init_ca(folder, organization=organization, days=days)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in files]})
        return
    for path in files:
        click.echo(str(path))
    click.echo(
        f"next: stillroom forensics provenance sign FILE --ca {folder} --out SIGNED", err=True
    )
