"""``stillroom forensics benchmark import``, ``split`` and ``audit``: benchmark manifests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import click

from stillroom.cli.options import (
    FiniteFloatRange,
    command,
    count_option,
    existing_path,
    output_options,
    path_option,
)
from stillroom.cli.output import print_json
from stillroom.forensics.benchmark.splits import SplitBy

__all__ = [
    "audit_command",
    "import_command",
    "seed_option",
    "split_command",
]

seed_option = count_option("--seed", default=0, show_default=True, least=0, help="Random seed.")


@command(
    "audit",
    "stillroom forensics benchmark audit run/output",
    "stillroom forensics benchmark audit manifest.csv --json",
)
@click.argument("manifest", type=existing_path)
@output_options
def audit_command(manifest: Path, as_json: bool) -> None:
    """Audit a manifest for leaks, near duplicates, and telltale metadata.

    A leak is a person, a recording or identical bytes in two splits. The last audit trains a
    classifier on format, size, tables and tags alone: its AUC should be near 0.5. Exit code 1 if
    something is found.
    """
    from stillroom.forensics.benchmark.audit import audit_items
    from stillroom.forensics.benchmark.manifest import find_manifest, read_items

    file = find_manifest(manifest)
    audit = audit_items(read_items(file), file.parent)
    if as_json:
        print_json({"manifest": str(file), **audit.to_json()})
    else:
        for line in audit.lines():
            click.echo(line)
    if not audit.is_clean:
        raise click.exceptions.Exit(1)


@command(
    "import",
    "stillroom forensics benchmark import --deepfakebench Celeb-DF-v2.json --out manifest.jsonl",
    "stillroom forensics benchmark import --ff-train train.json --ff-test test.json --out ff.csv",
)
@path_option("--deepfakebench", help="A dataset_json file of DeepfakeBench.")
@path_option("--ff-train", help="FaceForensics++'s train.json.")
@path_option("--ff-validation", help="FaceForensics++'s val.json.")
@path_option("--ff-test", help="FaceForensics++'s test.json.")
@click.option(
    "--compression", default="c23", show_default=True, help="Compression: raw, c23 or c40."
)
@path_option("--out", required=True, help="Output manifest: .jsonl, .csv or .parquet.")
@output_options
def import_command(
    deepfakebench: Path | None,
    ff_train: Path | None,
    ff_validation: Path | None,
    ff_test: Path | None,
    compression: str,
    out: Path,
    as_json: bool,
) -> None:
    """Import the lists of DeepfakeBench or FaceForensics++ as a manifest.

    Paths are kept as in the data set: save the manifest in the folder of the data.
    """
    from stillroom.forensics.benchmark.manifest import (
        import_deepfakebench,
        import_faceforensics,
        write_items,
    )

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


@command(
    "split",
    "stillroom forensics benchmark split manifest.csv --by identity --out split.csv",
    "stillroom forensics benchmark split run/output --by generator --held-out 0.3 --out g.jsonl",
)
@click.argument("manifest", type=existing_path)
@click.option(
    "--by",
    type=click.Choice(get_args(SplitBy)),
    default="identity",
    show_default=True,
    help="Attribute that no two splits share.",
)
@click.option(
    "--held-out",
    type=FiniteFloatRange(0, 0.9),
    default=0.2,
    show_default=True,
    help="Share of the test split.",
)
@click.option(
    "--validation",
    type=FiniteFloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Share of the validation split, for thresholds and calibration.",
)
@seed_option
@path_option("--out", required=True, help="Output manifest.")
@output_options
def split_command(manifest: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Split a manifest so that no person, recording or generator is on both sides.

    Rows that share one, also through the second person of a swap, go to the same split.
    """
    from stillroom.forensics.benchmark.manifest import read_items, write_items
    from stillroom.forensics.benchmark.splits import split_items

    items = split_items(read_items(manifest), **settings)
    write_items(out, items)
    counts = Counter((item.split, item.label) for item in items)
    if as_json:
        rows = {f"{split}/{label}": count for (split, label), count in sorted(counts.items())}
        print_json({"out": str(out), "counts": rows})
        return
    for split in ("train", "validation", "test"):
        click.echo(f"{split}: {counts[split, 0]} real, {counts[split, 1]} fake")
