"""``stillroom synth export``: records as a dataset that others load."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]

_FORMATS = (
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "text",
    "preference",
    "stillroom",
)


@click.command(
    "export",
    epilog="""
\b
Examples:
  stillroom synth export records --out dataset
  stillroom synth export records --out dataset --format alpaca --parquet --name "Bee keeping"
""",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@click.option(
    "--format",
    "shape",
    type=click.Choice(_FORMATS),
    default="messages",
    show_default=True,
    help="Shape of a row.",
)
@click.option("--parquet", is_flag=True, help="Write Parquet instead of JSON lines.")
@click.option("--name", default="", help="The dataset's name; by default the folder's.")
@click.option("--with-fields", is_flag=True, help="Keep fields and the whole origin in every row.")
@click.option("--out", type=existing_path, required=True, help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(
    records: tuple[Path, ...],
    shape: str,
    parquet: bool,
    name: str,
    with_fields: bool,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write records as a dataset with a card and Croissant metadata.

    One file a split; a record's field 'split' says which, and held_out becomes test. What the
    format cannot hold is left out and counted.
    """
    from stillroom.synth.exporting import ExportFormat, export_records

    chosen: ExportFormat = next(one for one in get_args(ExportFormat) if one == shape)
    told = export_records(
        records,
        out,
        format=chosen,
        kind="parquet" if parquet else "jsonl",
        name=name,
        with_fields=with_fields,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"out": str(out), **told.to_json()})
        return
    rows = ", ".join(f"{count} {split}" for split, count in sorted(told.rows.items()))
    click.echo(f"{out}: {rows}")
    for why, count in told.left_out.most_common():
        click.echo(f"left out: {count} rows: {why}")
