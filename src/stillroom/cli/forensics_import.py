"""``stillroom forensics import``: a published detector, brought into this program's files."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "import",
    epilog="""
\b
Examples:
  stillroom forensics import meso4 Meso4_DF.h5 --out meso4
  stillroom forensics import aasist AASIST-L.pth --out aasist
""",
)
@click.argument("kind", type=click.Choice(["aasist", "meso4"]))
@click.argument("weights", type=existing_path)
@click.option("--out", type=existing_path, required=True, help="The folder of the detector.")
@json_option
@debug_option
def command(kind: str, weights: Path, out: Path, as_json: bool) -> None:
    """Bring a published detector's weights into this program's files.

    Meso4 says 1 for real, AASIST's second output is bona fide; here a higher score is forged, and
    the last layer is turned round. Nothing is here to show that they work, so check calls all they
    say inconclusive.
    """
    from stillroom.forensics.published import import_meso4
    from stillroom.forensics.published_sound import import_aasist

    artifact = (import_meso4 if kind == "meso4" else import_aasist)(weights, out)
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest})
        return
    click.echo(f"{out}: {artifact.kind} of {kind}, digest {artifact.digest[:16]}")
    click.echo(
        "its scores are raw: nothing here has calibrated it, nor shown that it works", err=True
    )
