"""``stillroom forensics provenance sign``: a file's origin, signed into it."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "sign",
    epilog="""
\b
Examples:
  stillroom forensics provenance sign photo.jpg --ca ca --out signed.jpg
  stillroom forensics provenance sign clip.mp4 --ca ca --out signed.mp4 --made-by "my generator"
""",
)
@click.argument("file", type=existing_path)
@click.option("--ca", type=existing_path, required=True, help="The folder that init-ca made.")
@click.option("--out", type=existing_path, required=True, help="The signed file.")
@click.option("--title", default="", help="The file's title; default its name.")
@click.option(
    "--made-by",
    default="",
    help="The generator of a synthetic file: it is then marked as trainedAlgorithmicMedia. Without "
    "it the credentials claim nothing of how the file was made.",
)
@click.option(
    "--timestamp-url", default="", help="A timestamp authority to ask; needs the network."
)
@json_option
@debug_option
def command(
    file: Path, ca: Path, out: Path, title: str, made_by: str, timestamp_url: str, as_json: bool
) -> None:
    """Sign a file's origin into it."""
    from stillroom.forensics.signing import sign_file

    found = sign_file(
        file, out, ca, title=title or file.name, made_by=made_by, timestamp_url=timestamp_url
    )
    if as_json:
        print_json({"file": str(out), **found.to_json()})
        return
    click.echo(f"{out}: {found.integrity}, {found.trust}")
