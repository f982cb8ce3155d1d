"""``stillroom keys``: key pairs for signing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from stillroom.cli.app import command_group
from stillroom.cli.options import command, output_options
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.provenance.signing import KeyAlgorithm

__all__ = ["keys_group", "new_command"]


@command_group(
    "keys",
    {
        "new": ("proof.keys", "Write a new pair of keys."),
    },
    "stillroom keys new me",
    "stillroom keys new team --algorithm ed25519",
)
def keys_group() -> None:
    """Make a pair of keys for signing."""


@command(
    "new",
    "stillroom keys new me",
    "STILLROOM_SIGNING_PASSWORD=... stillroom keys new me --algorithm ed25519",
)
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--algorithm",
    type=click.Choice(["ecdsa-p256", "ed25519"]),
    default="ecdsa-p256",
    show_default=True,
    help="Tools of OpenSSF model signing verify ECDSA only.",
)
@output_options
def new_command(name: Path, algorithm: str, as_json: bool) -> None:
    """Write a new pair of keys.

    NAME.key, you alone may read; NAME.pub you give to those who verify your signatures.

    With STILLROOM_SIGNING_PASSWORD set, the private key is encrypted with it.
    """
    from stillroom.provenance.signing import (
        KEY_VARIABLE,
        PASSWORD_VARIABLE,
        create_key_pair,
        load_public_key,
    )

    password = os.environ.get(PASSWORD_VARIABLE, "").encode() or None
    private, public = create_key_pair(
        name, algorithm=cast("KeyAlgorithm", algorithm), password=password
    )
    key_id = load_public_key(public).key_id
    if as_json:
        print_json({"private": str(private), "public": str(public), "key": key_id})
        return
    click.echo(f"{private}: private key, {'encrypted' if password else 'not encrypted'}; keep it")
    click.echo(f"{public}: public key {key_id[:16]}; give it to those who verify")
    click.echo(f"jobs sign themselves with: export {KEY_VARIABLE}={private.absolute()}")
