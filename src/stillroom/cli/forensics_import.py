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
  stillroom forensics import meso4 weights.npz --out meso4 --json
""",
)
@click.argument("kind", type=click.Choice(["meso4"]))
@click.argument("weights", type=existing_path)
@click.option("--out", type=existing_path, required=True, help="The folder of the detector.")
@json_option
@debug_option
def command(kind: str, weights: Path, out: Path, as_json: bool) -> None:
    """Bring a published detector's weights into this program's files.

    Meso4 says 1 for real; here a higher score is forged, and the last layer's sign is changed. No
    faces are here to show that it works, so check calls all it says inconclusive.
    """
    from stillroom.forensics.published import import_meso4

    artifact = import_meso4(weights, out)
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest})
        return
    click.echo(f"{out}: {artifact.kind} of {kind}, digest {artifact.digest[:16]}")
    click.echo(
        "its scores are raw: nothing here has calibrated it, nor shown that it works", err=True
    )
