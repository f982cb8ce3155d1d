"""``stillroom publish``: send a finished job to an object store."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "publish",
    epilog="""
\b
Examples:
  stillroom publish merged s3://models/merged
  stillroom publish runs/records s3://data/records --overwrite
""",
)
@click.argument("folder", type=existing_path)
@click.argument("address")
@click.option("--overwrite", is_flag=True, help="Replace what lies at the address.")
@json_option
@debug_option
def command(folder: Path, address: str, overwrite: bool, as_json: bool) -> None:
    """Send a finished job to an object store.

    Its manifest is sent last: who reads the address meanwhile finds no artifact.json, and so no
    half of a job. Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_ENDPOINT_URL).
    """
    from stillroom.objects import publish

    sent = publish(folder, address, overwrite=overwrite)
    if as_json:
        print_json({"address": address, "sent": sent})
    else:
        click.echo(f"{address}: {sent} objects sent")
