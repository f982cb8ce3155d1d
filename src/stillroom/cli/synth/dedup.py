"""``stillroom synth dedup`` and ``decontaminate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    FiniteFloat,
    command,
    count_option,
    engine_option,
    existing_path,
    out_folder_option,
    paths_option,
    read_engine,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.recipes import Recipe

__all__ = [
    "decontaminate_command",
    "dedup_command",
]


def _build_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a command's arguments; paths start at the current folder."""
    from stillroom.recipes import parse_recipe

    return parse_recipe(json.dumps(settings), "command line")


@command(
    "dedup",
    "stillroom synth dedup records.jsonl --out clean",
    "stillroom synth dedup a.jsonl b.parquet --out clean --threshold 0.7 --field question",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@click.option(
    "--threshold",
    type=FiniteFloat(),
    default=0.8,
    show_default=True,
    help="Jaccard similarity of word n-grams above which two records are duplicates.",
)
@count_option("--ngram-size", default=5, show_default=True, help="Number of words of an n-gram.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="Field to compare; may be repeated; by default all messages.",
)
@click.option(
    "--prefer", default="", help="Numeric field: the record with the highest value is kept."
)
@out_folder_option
@engine_option
@run_options
def dedup_command(
    records: tuple[Path, ...],
    threshold: float,
    ngram_size: int,
    fields: tuple[str, ...],
    prefer: str,
    out: Path,
    engine: str,
    as_json: bool,
    **options: bool,
) -> None:
    """Remove near duplicates from files of records.

    Every pair above the threshold is found, and each removed record is a near duplicate of a kept
    one: output/duplicates.jsonl lists both. The order of rows does not matter.
    """
    settings = {
        "kind": "synth.dedup",
        "records": list(map(str, records)),
        "threshold": threshold,
        "ngram_size": ngram_size,
        "fields": list(fields),
        "prefer": prefer,
    }
    recipe = _build_recipe(settings).model_copy(update={"engine": read_engine(engine)})
    artifact = run_job_recipe(recipe, out, options)
    counts = artifact.details
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **counts})
        return
    click.echo(
        f"{out}: {counts['kept']} of {counts['read']} records kept, {counts['fell']} are near "
        "duplicates of a kept one"
    )
    for name in ("unreadable", "wordless"):
        if counts[name]:
            click.echo(f"{counts[name]} {name}")


@command(
    "decontaminate",
    "stillroom synth decontaminate records.jsonl --against test.jsonl --out clean",
    "stillroom synth decontaminate r.jsonl --against test.jsonl --out clean \\",
    "  --embedder hub:sentence-transformers/all-MiniLM-L6-v2",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@paths_option("--against", required=True, help="File or artifact of test items; may be repeated.")
@click.option(
    "--near",
    type=FiniteFloat(),
    default=0.65,
    show_default=True,
    help="Share of an item's words, in order, that counts as contamination.",
)
@click.option("--embedder", default="", help="Also look for paraphrases, with this embedder.")
@click.option("--judge", default="", help="Model that decides on doubtful paraphrases.")
@out_folder_option
@run_options
def decontaminate_command(
    records: tuple[Path, ...],
    against: tuple[Path, ...],
    near: float,
    embedder: str,
    judge: str,
    out: Path,
    as_json: bool,
    **options: bool,
) -> None:
    """Remove records that contain a test question.

    Finds items verbatim, with changed words, in another order, and, with --embedder, paraphrased.
    output/contaminated.jsonl lists each removed record with the item that it contains. If the
    embedder or the judge fails, records go to output/unchecked.jsonl and the exit code is 1.
    """
    settings: dict[str, Any] = {
        "kind": "synth.decontaminate",
        "records": list(map(str, records)),
        "against": list(map(str, against)),
        "near": near,
    }
    if embedder or judge:
        settings["paraphrases"] = {
            **({"embedder": embedder} if embedder else {}),
            **({"judge": {"model": judge}} if judge else {}),
        }
    recipe = _build_recipe(settings)
    artifact = run_job_recipe(recipe, out, options)
    counts = artifact.details
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **counts})
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts["kinds"].items())
        click.echo(
            f"{out}: {counts['kept']} of {counts['read']} records are clean; "
            f"{counts['contaminated']} contain one of {counts['items_found']} items"
            + (f" ({kinds})" if kinds else "")
        )
        if not counts["rewordings"]:
            click.echo("paraphrases were not searched: add --embedder")
        if counts["unchecked"]:
            click.echo(f"{counts['unchecked']} records are not checked: {counts['why_unchecked']}")
    if counts["unchecked"]:
        sys.exit(1)
