"""``stillroom distill verify``: are these the teacher's words, and all of them intact?"""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "verify",
    epilog="""
\b
Examples:
  stillroom distill verify teacher-cache
  stillroom distill verify teacher-cache --teacher hub:HuggingFaceTB/SmolLM2-135M --records 32
""",
)
@click.argument("cache", type=existing_path)
@click.option("--teacher", default="", help="Where the teacher is; default where it was.")
@click.option(
    "--records",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="How many are scored again; 0 checks digests only.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the choice of records.")
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    help="Largest difference in nats; default by the cache's precision.",
)
@json_option
@debug_option
def command(
    cache: Path, teacher: str, records: int, seed: int, tolerance: float | None, as_json: bool
) -> None:
    """Check a teacher cache, and score a sample of it again.

    Every record's digest is recomputed; then the teacher scores some records again and the largest
    difference is told. The command fails where it is above the tolerance.
    """
    from stillroom.distill.cache_check import check_cache

    found = check_cache(
        cache,
        teacher=teacher,
        records=records,
        seed=seed,
        tolerance=tolerance,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json({"cache": str(cache), **found.to_json()})
    else:
        click.echo(str(found))
    found.refuse_apart(cache)
