"""``stillroom rag tune``: how words and vectors are best fused, learned on judged queries."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json
from stillroom.cli.rag_eval import align_columns

__all__ = ["command"]


@click.command(
    "tune",
    epilog="""
\b
Examples:
  stillroom rag tune index --collection scifact --out tuned
  stillroom rag tune index --queries q.jsonl --qrels qrels.txt --out tuned --way hybrid --way convex
""",
)
@click.argument("index", type=existing_path)
@click.option("--collection", type=existing_path, help="A folder in BEIR's layout.")
@click.option("--split", default="test", show_default=True, help="Of the collection's judgements.")
@click.option("--queries", type=existing_path, help="JSON lines, or lines of id, tab, text.")
@click.option("--qrels", type=existing_path, help="TREC's or BEIR's columns, or JSON lines.")
@click.option(
    "--way",
    "ways",
    multiple=True,
    help="What is tried, the default first. Default: 50 settings of hybrid and convex.",
)
@click.option("--measure", default="ndcg@10", show_default=True, help="What is made high.")
@click.option("--folds", type=click.IntRange(2, 100), default=5, help="Parts of the queries.")
@click.option("--seed", type=int, default=0, help="Of the folds and the intervals.")
@click.option("--out", type=existing_path, required=True, help="The folder of the report.")
@json_option
@job_options
def command(
    index: Path,
    collection: Path | None,
    split: str,
    queries: Path | None,
    qrels: Path | None,
    ways: tuple[str, ...],
    measure: str,
    folds: int,
    seed: int,
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Choose on judged queries how words and vectors are fused.

    Every setting is measured on queries that had no part in choosing it. Where nothing is gained
    so, the default stays. output/retriever.json names the retriever to use.
    """
    from stillroom.evaluate.collections import find_collection
    from stillroom.jobs import choose_reporter
    from stillroom.rag.evaluation_job import Plan
    from stillroom.rag.tuning_job import tune_fusion

    if collection is not None:
        found = find_collection(collection, split)
        queries, qrels = queries or found.queries, qrels or found.qrels
    if queries is None or qrels is None:
        raise click.UsageError("give --collection, or --queries and --qrels")
    artifact, report, tuned = tune_fusion(
        Plan(index, queries, qrels, ways, (measure,), seed=seed),
        out,
        folds=folds,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        told = {"way": tuned.chosen, "is_gain": tuned.is_gain}
        print_json({"out": str(out), "digest": artifact.digest, **told, **report.to_json()})
        return
    click.echo(report.summary)
    for section in report.sections:
        if section.table is not None:
            click.echo(f"\n{section.title}: {section.table.caption}. {section.text}")
            click.echo(align_columns([section.table.columns, *section.table.rows]))
    click.echo(f"\n{out}: {artifact.kind}, digest {artifact.digest[:16]}")
