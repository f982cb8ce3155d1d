"""``stillroom rag index``, ``update``, ``delete``, ``compact``, ``log``, ``verify``, ``unpack``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import (
    command,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    overwrite_option,
    quiet_option,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import print_json

__all__ = [
    "compact_command",
    "delete_command",
    "index_command",
    "log_command",
    "unpack_command",
    "update_command",
    "verify_command",
]


@command(
    "index",
    "stillroom rag index ./documents --out index",
    "stillroom rag index ./documents --out index chunker.size=120",
)
@click.argument("folder")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_folder_option
@run_options
def index_command(
    folder: str,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: bool,
) -> None:
    """Parse and index a folder of documents."""
    from stillroom.cli.results import print_run
    from stillroom.objects import is_address
    from stillroom.recipes import parse_recipe

    documents = folder if is_address(folder) else str(Path(folder).absolute())
    text = f"version: 1\nkind: rag.index\ndocuments: {documents!r}\n"
    recipe = parse_recipe(text, "rag index", overrides, folder=Path.cwd())
    artifact = run_job_recipe(recipe, out, options)
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, "details": dict(artifact.details)})
    else:
        print_run(out, artifact)


@command("update", "stillroom rag update index", "stillroom rag update index ./documents --json")
@click.argument("index", type=existing_path)
@click.argument("folder", type=existing_path, required=False)
@quiet_option
@output_options
def update_command(index: Path, folder: Path | None, quiet: bool, as_json: bool) -> None:
    """Update an index to the current state of its folder of documents.

    Readers keep the state that they have opened. An interrupted update continues when it is run
    again; the index changes once, at the end.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.maintenance.update import update_index

    done = update_index(
        index, folder.absolute() if folder else None, reporter=choose_reporter(quiet=quiet)
    )
    if as_json:
        print_json(done.to_json())
        return
    click.echo(str(done))
    click.echo(f"{index}: snapshot {done.snapshot}, digest {done.digest[:16]}")


@command(
    "delete",
    "stillroom rag delete index notes/2019.md",
    'stillroom rag delete index drafts/ "*.tmp.md"',
)
@click.argument("index", type=existing_path)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@output_options
def delete_command(index: Path, paths: tuple[str, ...], as_json: bool) -> None:
    """Delete documents from an index, by path, folder/ or pattern.

    Files are not touched: one that still exists in the folder returns with the next update.
    """
    from stillroom.rag.maintenance.update import delete_documents

    snapshot = delete_documents(index, paths)
    if as_json:
        print_json({"snapshot": snapshot.number, "digest": snapshot.digest, **snapshot.counts})
        return
    click.echo(
        f"{index}: snapshot {snapshot.number}, {snapshot.documents} documents, "
        f"digest {snapshot.digest[:16]}"
    )


@command(
    "unpack",
    "stillroom rag unpack scifact/corpus.jsonl --out documents",
    "stillroom rag unpack corpus.jsonl --out documents --overwrite",
)
@click.argument("corpus", type=existing_path)
@out_folder_option
@overwrite_option
@output_options
def unpack_command(corpus: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write each row of a corpus (id, title, text) as a document to be indexed."""
    from stillroom.evaluate.qa.collections import read_corpus
    from stillroom.rag.evaluation.retrieval import unpack_corpus

    count = unpack_corpus(read_corpus(corpus), out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "documents": count})
    else:
        click.echo(f"{out}: {count} documents")


@command("log", "stillroom rag log index", "stillroom rag log index --json")
@click.argument("index", type=existing_path)
@output_options
def log_command(index: Path, as_json: bool) -> None:
    """List the snapshots of an index that can be queried, newest first."""
    from stillroom.rag.maintenance.update import list_snapshots

    known = list_snapshots(index)[::-1]
    if as_json:
        print_json({"snapshots": [asdict(snapshot) for snapshot in known]})
        return
    for snapshot in known:
        click.echo(
            f"{snapshot.number:>5}  {snapshot.digest[:16]}  {snapshot.made[:19]}  "
            f"{snapshot.documents:>7} documents {snapshot.passages:>8} passages  {snapshot.reason}"
        )


@command("compact", "stillroom rag compact index", "stillroom rag compact index --json")
@click.argument("index", type=existing_path)
@output_options
def compact_command(index: Path, as_json: bool) -> None:
    """Merge an index's segments and remove data of older snapshots."""
    from stillroom.rag.maintenance.update import compact_index

    done = compact_index(index)
    if as_json:
        print_json(asdict(done))
        return
    click.echo(
        f"{index}: {done.bytes_before / 1e6:.1f} MB in {done.segments_before} segments before, "
        f"{done.bytes_after / 1e6:.1f} MB in {done.segments_after} after"
    )
    if done.held:
        click.echo(
            f"{done.held} older snapshots remain while one is being read; the next change after "
            "that removes them."
        )


@command("verify", "stillroom rag verify index", "stillroom rag verify index --repair")
@click.argument("index", type=existing_path)
@flag_option("--repair", help="Rebuild derived files from the ledger.")
@output_options
def verify_command(index: Path, repair: bool, as_json: bool) -> None:
    """Check an index's segments, counts and texts against its catalog.

    --repair rebuilds damaged segments (their vectors are embedded again), index.json and
    artifact.json, and approximate search until its recall is sufficient. The catalog itself
    (ledger.sqlite) cannot be rebuilt.
    """
    from stillroom.errors import IntegrityError, Problem
    from stillroom.rag.index.ann_recall import check_recall, describe_recall, refresh_recall
    from stillroom.rag.maintenance.update import check_index, repair_index

    findings = repair_index(index) if repair else check_index(index)
    remaining = check_index(index) if repair else findings
    recall: dict[str, Any] | None = None
    if not remaining:
        recall, doubts = check_recall(index)
        if doubts and repair:
            refresh_recall(index)
            recall, remaining = check_recall(index)
            findings = [*findings, *doubts]
        elif doubts:
            findings = remaining = [*findings, *doubts]
    if as_json:
        print_json(
            {
                "findings": [finding.to_json() for finding in findings],
                "left": [finding.to_json() for finding in remaining],
                **({"approximate": recall} if recall else {}),
            }
        )
    elif repair:
        for finding in findings:
            click.echo(f"found: {finding}")
    if remaining:
        raise IntegrityError(
            [
                Problem(
                    str(finding),
                    "rag.index-damaged",
                    str(index),
                    "the content recorded in the ledger",
                    "add --repair"
                    if finding.is_derived and not repair
                    else "build the index again with --overwrite",
                )
                for finding in remaining
            ]
        )
    if not as_json:
        click.echo(f"{index}: ledger, segments and texts agree")
        if recall is not None:
            click.echo(describe_recall(recall))
