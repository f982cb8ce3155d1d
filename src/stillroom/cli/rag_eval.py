"""``stillroom rag eval``: how well ways of retrieving find what is judged relevant."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.judged import find_judged, judged_options, print_report
from stillroom.cli.options import existing_path, job_options, json_option

__all__ = ["command"]


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
@judged_options
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
    from stillroom.jobs import choose_reporter
    from stillroom.rag.evaluation import DEFAULT_MEASURES
    from stillroom.rag.evaluation_job import Plan, evaluate_retrieval

    found, judged = find_judged(collection, split, queries, qrels)
    plan = Plan(
        index,
        found,
        judged,
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
    print_report(out, artifact, report, as_json=as_json)
