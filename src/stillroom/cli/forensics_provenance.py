"""``stillroom forensics provenance``: content credentials, written and read."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "provenance",
    cls=LazyGroup,
    lazy={
        "init-ca": (
            "stillroom.cli.forensics_init_ca",
            "Make a certificate authority and a signer that work at once.",
        ),
        "sign": ("stillroom.cli.forensics_sign", "Sign a file's origin into it."),
        "verify": (
            "stillroom.cli.forensics_verify",
            "Say of files whether they are as signed, by whom, and whether that is trusted.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom forensics provenance init-ca ca
  stillroom forensics provenance verify signed.jpg --trust ca/ca.pem
""",
)
def command() -> None:
    """Sign media, and read what they say of their own origin."""
