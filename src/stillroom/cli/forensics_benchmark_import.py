"""``stillroom forensics benchmark import``: other benchmarks' lists as a manifest."""

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
  stillroom forensics benchmark import --deepfakebench Celeb-DF-v2.json --out manifest.jsonl
  stillroom forensics benchmark import --ff-train train.json --ff-test test.json --out ff.csv
""",
)
@click.option("--deepfakebench", type=existing_path, help="One of DeepfakeBench's dataset_json.")
@click.option("--ff-train", type=existing_path, help="FaceForensics++'s train.json.")
@click.option("--ff-validation", type=existing_path, help="FaceForensics++'s val.json.")
@click.option("--ff-test", type=existing_path, help="FaceForensics++'s test.json.")
@click.option("--compression", default="c23", show_default=True, help="raw, c23 or c40.")
@click.option(
    "--out", type=existing_path, required=True, help="The manifest: .jsonl, .csv or .parquet."
)
@json_option
@debug_option
def command(
    deepfakebench: Path | None,
    ff_train: Path | None,
    ff_validation: Path | None,
    ff_test: Path | None,
    compression: str,
    out: Path,
    as_json: bool,
) -> None:
    """Read DeepfakeBench's or FaceForensics++'s lists into a manifest.

    Paths stay as the data set has them: put the manifest into the folder that holds the data.
    """
    from stillroom.forensics.importing import import_deepfakebench, import_faceforensics
    from stillroom.forensics.items import write_items

    if deepfakebench is not None:
        items = import_deepfakebench(deepfakebench, compression=compression)
    else:
        items = import_faceforensics(ff_train, ff_validation, ff_test, compression=compression)
    write_items(out, items)
    clips = len({item.unit for item in items})
    if as_json:
        print_json({"out": str(out), "items": len(items), "clips": clips})
        return
    click.echo(f"{out}: {len(items)} rows of {clips} clips")
