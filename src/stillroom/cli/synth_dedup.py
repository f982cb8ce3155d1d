"""``stillroom synth dedup``: near duplicates out of files of records."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import (
    engine_option,
    existing_path,
    job_options,
    json_option,
    print_json,
    read_engine,
)

__all__ = ["command"]


@click.command(
    "dedup",
    epilog="""
\b
Examples:
  stillroom synth dedup records.jsonl --out clean
  stillroom synth dedup a.jsonl b.parquet --out clean --threshold 0.7 --field question
""",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@click.option(
    "--threshold",
    type=Finite(),
    default=0.8,
    show_default=True,
    help="Jaccard similarity of word n-grams from which two records are one.",
)
@click.option("--n", type=int, default=5, show_default=True, help="Words of an n-gram.")
@click.option(
    "--field", "fields", multiple=True, help="Compare these fields; by default all messages."
)
@click.option(
    "--prefer", default="", help="Field whose number says which one is kept, the highest."
)
@click.option("--out", type=existing_path, required=True, help="The folder to write.")
@engine_option
@json_option
@job_options
def command(
    records: tuple[Path, ...],
    threshold: float,
    n: int,
    fields: tuple[str, ...],
    prefer: str,
    out: Path,
    engine: str,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Take near duplicates out of files of records.

    Every pair above the threshold is found, and each record that falls is near the very one that
    is kept: output/duplicates.jsonl lists both. The order of rows does not matter.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.jobs.engines import open_engine
    from stillroom.synth.deduplication import Deduplication, deduplicate

    with open_engine(read_engine(engine), lambda line: click.echo(line, err=True)) as opened:
        artifact, counts = deduplicate(
            Deduplication(records, threshold, n, fields, prefer),
            out,
            resume=resume,
            overwrite=overwrite,
            reporter=choose_reporter(quiet=quiet),
            engine=opened,
        )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **counts})
        return
    click.echo(
        f"{out}: {counts['kept']} of {counts['read']} records kept, {counts['fell']} are near "
        f"duplicates of one that is kept"
    )
    for name in ("unreadable", "wordless"):
        if counts[name]:
            click.echo(f"{counts[name]} {name}")
