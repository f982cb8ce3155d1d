"""``stillroom rag eval``: how well ways of retrieving find what is judged relevant."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["align_columns", "command"]


@click.command(
    "eval",
    epilog="""
\b
Examples:
  stillroom rag eval index --collection scifact --out report
  stillroom rag eval index --queries q.jsonl --qrels qrels.txt --out report --way hybrid+proximity
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
    help="[TRANSFORM>]RETRIEVER[+RERANKER]; the first is compared with. Default: hybrid, keyword, "
    "dense and hybrid+proximity.",
)
@click.option("--measure", "measures", multiple=True, help="As ndcg@10; the first one ranks.")
@click.option("--model", default="", help="What transforms and rerankers may ask, as hyde does.")
@click.option("--depth", type=click.IntRange(1, 1000), default=100, help="Ranks that are judged.")
@click.option("--k", type=click.IntRange(1), default=10, help="Hits that a reader sees.")
@click.option("--seed", type=int, default=0, help="Of the intervals.")
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
    measures: tuple[str, ...],
    model: str,
    depth: int,
    k: int,
    seed: int,
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Measure retrieval on judged queries, with intervals and paired differences.

    The judgements name passages, documents, paths of documents, or rows of an unpacked corpus.
    """
    from stillroom.evaluate.collections import find_collection
    from stillroom.jobs import choose_reporter
    from stillroom.rag.evaluation import DEFAULT_MEASURES
    from stillroom.rag.evaluation_job import Plan, evaluate_retrieval

    if collection is not None:
        found = find_collection(collection, split)
        queries, qrels = queries or found.queries, qrels or found.qrels
    if queries is None or qrels is None:
        raise click.UsageError("give --collection, or --queries and --qrels")
    plan = Plan(
        index,
        queries,
        qrels,
        ways or ("hybrid", "keyword", "dense", "hybrid+proximity"),
        measures or DEFAULT_MEASURES,
        depth,
        k,
        seed,
        model,
    )
    artifact, report = evaluate_retrieval(
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **report.to_json()})
        return
    click.echo(report.summary)
    for section in report.sections:
        if section.table is not None:
            click.echo(f"\n{section.title}: {section.table.caption}")
            click.echo(align_columns([section.table.columns, *section.table.rows]))
    click.echo(f"\n{out}: {artifact.kind}, digest {artifact.digest[:16]}")


def align_columns(rows: list[tuple[str, ...]]) -> str:
    """Return rows as text, each column as wide as its longest cell, at most 60."""
    widths = [min(max(len(row[at]) for row in rows), 60) for at in range(len(rows[0]))]
    lines = (
        "  ".join(cell[:60].ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)
