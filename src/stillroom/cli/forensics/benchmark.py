"""``stillroom forensics benchmark``: calls of ``forensics.benchmark``, and their output."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import click

from stillroom.cli.app import command_group
from stillroom.cli.options import (
    FiniteFloatRange,
    existing_path,
    output_options,
    path_option,
    refuse_idle_options,
    seed_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.errors import count_noun
from stillroom.forensics.benchmark.splits import SplitBy

__all__ = [
    "audit_command",
    "benchmark_group",
    "compare_command",
    "import_command",
    "split_command",
]


@command_group(
    "benchmark",
    "stillroom forensics benchmark audit run/output",
    "stillroom forensics benchmark compare ours theirs",
)
def benchmark_group() -> None:
    """Benchmark detectors: manifests, splits, audits and comparisons."""


@benchmark_group.subcommand(
    "audit",
    "stillroom forensics benchmark audit run/output",
    "stillroom forensics benchmark audit manifest.csv --json",
)
@click.argument("manifest", type=existing_path)
@output_options
def audit_command(manifest: Path, as_json: bool) -> None:
    """Audit a manifest for leaks, near duplicates, and metadata that reveals the label.

    A leak is a person, a recording or identical bytes in two splits. The last audit trains a
    classifier on format, size, quantization tables and tags alone: its AUC should be near 0.5. Exit
    code 1 if something is found.
    """
    from stillroom.forensics.benchmark.audit import audit_items
    from stillroom.forensics.benchmark.manifest import find_manifest, read_items

    file = find_manifest(manifest)
    audit = audit_items(read_items(file), file.parent)
    if as_json:
        print_json({"manifest": str(file), **audit.to_json()})
    else:
        for line in audit.lines():
            print_text(line)
    if not audit.is_clean:
        raise click.exceptions.Exit(1)


@benchmark_group.subcommand(
    "import",
    "stillroom forensics benchmark import --deepfakebench Celeb-DF-v2.json --out manifest.jsonl",
    "stillroom forensics benchmark import --ff-train train.json --ff-test test.json --out ff.csv",
    "stillroom forensics benchmark import --folder set --out set/manifest.jsonl",
)
@path_option("--deepfakebench", help="A dataset_json file of DeepfakeBench.")
@path_option("--folder", help="A folder with files in real/ and fake/, or 0_real/ and 1_fake/.")
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
    folder: Path | None,
    ff_train: Path | None,
    ff_validation: Path | None,
    ff_test: Path | None,
    compression: str,
    out: Path,
    as_json: bool,
) -> None:
    """Import a folder, or the lists of DeepfakeBench or FaceForensics++, as a manifest.

    Folders named train, val and test give the split, the others the generator of a fake. Paths
    are kept as in the data set: save the manifest in the folder of the data.
    """
    from stillroom.forensics.benchmark.manifest import (
        import_deepfakebench,
        import_faceforensics,
        import_folder,
        write_derived_items,
    )

    lists = {"ff_train", "ff_validation", "ff_test"}
    sources: dict[str, Path | None] = {}
    settings: dict[str, Any] = {"compression": compression}
    if folder is not None:
        refuse_idle_options({*lists, "deepfakebench", "compression"}, "has no effect with --folder")
        items, settings = import_folder(folder, out.parent), {}
    elif deepfakebench is not None:
        refuse_idle_options(lists, "has no effect with --deepfakebench")
        sources = {"list": deepfakebench}
        items = import_deepfakebench(deepfakebench, compression=compression)
    else:
        sources = {"train": ff_train, "validation": ff_validation, "test": ff_test}
        items = import_faceforensics(ff_train, ff_validation, ff_test, compression=compression)
    named = {role: path for role, path in sources.items() if path is not None}
    write_derived_items(out, items, "forensics.import", named, **settings)
    clips = len({item.unit for item in items})
    if as_json:
        print_json({"out": str(out), "items": len(items), "clips": clips})
        return
    print_text(f"{out}: {count_noun(len(items), 'row')} of {clips} clips")


@benchmark_group.subcommand(
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
    """Split a manifest so that no person, recording or generator is in two splits.

    Rows that share one, also through the second person of a swap, go to the same split.
    """
    from stillroom.forensics.benchmark.manifest import read_items, write_derived_items
    from stillroom.forensics.benchmark.splits import split_items

    items = split_items(read_items(manifest), **settings)
    write_derived_items(out, items, "forensics.split", {"manifest": manifest}, **settings)
    counts = Counter((item.split, item.label) for item in items)
    if as_json:
        rows = {f"{split}/{label}": count for (split, label), count in sorted(counts.items())}
        print_json({"out": str(out), "counts": rows})
        return
    for split in ("train", "validation", "test"):
        print_text(f"{split}: {counts[split, 0]} real, {counts[split, 1]} fake")


@benchmark_group.subcommand(
    "compare",
    "stillroom forensics benchmark compare ours theirs",
    "stillroom forensics benchmark compare ours theirs.json --json",
)
@click.argument("ours", type=existing_path)
@click.argument("theirs", type=existing_path)
@output_options
def compare_command(ours: Path, theirs: Path, as_json: bool) -> None:
    """Compare two detectors measured under one protocol.

    OURS and THEIRS are jobs of kind forensics.benchmark that scored a table, or their result.json.

    AUCs on the same items are compared by DeLong's test, with a group bootstrap interval of the
    difference. Results of different protocols are refused, and the differences listed.
    """
    from stillroom.forensics.benchmark.evaluation import compare_evaluations, read_evaluation

    first, second = read_evaluation(ours), read_evaluation(theirs)
    comparison = compare_evaluations(first, second)
    if as_json:
        names = {"ours": first.detector, "theirs": second.detector}
        protocol = {"protocol_digest": first.protocol.digest}
        print_json({**names, **protocol, **dataclasses.asdict(comparison)})
        return
    print_text(f"{first.detector} against {second.detector}: {comparison.line()}")
