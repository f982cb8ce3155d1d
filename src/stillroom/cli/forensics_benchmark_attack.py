"""``stillroom forensics benchmark attack``: a detector under attack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

if TYPE_CHECKING:
    from stillroom.forensics.adversarial import Attack

__all__ = ["command"]


@click.command(
    "attack",
    epilog="""
\b
Examples:
  stillroom forensics benchmark attack run/output --detector runs/sbi
  stillroom forensics benchmark attack run/output --detector runs/sbi --attack pgd --strength 2
""",
)
@click.argument("manifest", type=existing_path)
@click.option("--detector", type=existing_path, required=True, help="A trained detector's folder.")
@click.option(
    "--attack",
    "attacks",
    type=click.Choice(["fgsm", "pgd", "square", "eot_jpeg"]),
    multiple=True,
    help="Which; default all; may be repeated.",
)
@click.option(
    "--strength",
    "strengths",
    type=click.IntRange(1, 64),
    multiple=True,
    help="The most that a value of 0 to 255 may change; default 1, 2 and 4.",
)
@click.option("--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Steps.")
@click.option(
    "--queries",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="How often the square attack may ask for scores.",
)
@click.option("--split", default="test", show_default=True, help="What is tested; '' for all.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what is drawn by lot.",
)
@json_option
@debug_option
def command(
    manifest: Path,
    detector: Path,
    attacks: tuple[str, ...],
    strengths: tuple[int, ...],
    steps: int,
    queries: int,
    split: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure what is left of a detector under adversarial noise and search.

    Forged pictures are changed within a bound until they pass for real: along the network's
    gradient (fgsm, pgd), by search over scores alone (square), or so that JPEG does not take it
    away (eot_jpeg). What counts as found is decided on the manifest's validation rows, else by the
    detector's own calibration; the first line says which. Nothing is written.
    """
    from stillroom.forensics.adversarial import ATTACKS, attack_manifest
    from stillroom.forensics.detecting import TrainedDetector

    found = attack_manifest(
        manifest,
        TrainedDetector.open(detector),
        attacks=cast("tuple[Attack, ...]", attacks) or ATTACKS,
        strengths=strengths or (1, 2, 4),
        steps=steps,
        queries=queries,
        split=split,
        seed=seed,
    )
    if as_json:
        print_json({"detector": str(detector), **found.to_json()})
        return
    for line in found.lines():
        click.echo(line)
