"""``stillroom forensics benchmark split``: parts that share nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import cast, get_args

import click

from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import debug_option, existing_path, json_option, print_json
from stillroom.forensics.splits import SplitBy

__all__ = ["command"]


@click.command(
    "split",
    epilog="""
\b
Examples:
  stillroom forensics benchmark split manifest.csv --by identity --out split.csv
  stillroom forensics benchmark split run/output --by generator --held-out 0.3 --out g.jsonl
""",
)
@click.argument("manifest", type=existing_path)
@click.option(
    "--by",
    type=click.Choice(get_args(SplitBy)),
    default="identity",
    show_default=True,
    help="What no two splits share.",
)
@click.option(
    "--held-out",
    type=FiniteRange(0, 0.9),
    default=0.2,
    show_default=True,
    help="Share to test on.",
)
@click.option(
    "--validation",
    type=FiniteRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Share to choose thresholds and calibrate on.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the lot."
)
@click.option("--out", type=existing_path, required=True, help="The new manifest.")
@json_option
@debug_option
def command(
    manifest: Path,
    by: str,
    held_out: float,
    validation: float,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Split a manifest so that no person, recording or generator is on both sides.

    Rows that share one, also through a swap's second person, go into one split together.
    """
    from stillroom.forensics.items import read_items, write_items
    from stillroom.forensics.splits import split_items

    items = split_items(
        read_items(manifest),
        by=cast("SplitBy", by),
        held_out=held_out,
        validation=validation,
        seed=seed,
    )
    write_items(out, items)
    counts = Counter((item.split, item.label) for item in items)
    if as_json:
        rows = {f"{split}/{label}": count for (split, label), count in sorted(counts.items())}
        print_json({"out": str(out), "counts": rows})
        return
    for split in ("train", "validation", "test"):
        click.echo(f"{split}: {counts[split, 0]} real, {counts[split, 1]} fake")
