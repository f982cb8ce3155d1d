"""``stillroom rag tune``: how words and vectors are best fused, learned on judged queries."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.judged import find_access, find_judged, judged_options, print_report
from stillroom.cli.options import access_options, existing_path, job_options, json_option

__all__ = ["command"]


@click.command(
    "tune",
    epilog="""
\b
Examples:
  stillroom rag tune index --collection scifact --out tuned
  stillroom rag tune index --collection scifact --out tuned --write
  stillroom rag tune index --queries q.jsonl --qrels qrels.txt --out tuned --way hybrid --way convex
""",
)
@click.argument("index", type=existing_path)
@judged_options
@click.option(
    "--way",
    "ways",
    multiple=True,
    help="What is tried, the default first. Default: 50 settings of hybrid and convex.",
)
@click.option("--measure", default="ndcg@10", show_default=True, help="What is made high.")
@click.option("--folds", type=click.IntRange(2, 100), default=5, help="Parts of the queries.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of the folds and the intervals."
)
@click.option(
    "--write", "is_written", is_flag=True, help="Search the index by what was chosen from now on."
)
@access_options
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
    is_written: bool,
    tenant: str,
    principals: tuple[str, ...],
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Choose on judged queries how words and vectors are fused.

    Every setting is measured on queries that had no part in choosing it. Where nothing is gained
    so, the default stays. output/retriever.json names the retriever to use; --write lets the index
    be searched by it wherever nobody names another.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.measuring.evaluation_job import Plan
    from stillroom.rag.measuring.tuning_job import tune_fusion

    found, judged = find_judged(collection, split, queries, qrels)
    artifact, report, tuned = tune_fusion(
        Plan(
            index,
            found,
            judged,
            ways,
            (measure,),
            seed=seed,
            access=find_access(tenant, principals),
        ),
        out,
        folds=folds,
        is_written=is_written,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    told = {"way": tuned.chosen, "is_gain": tuned.is_gain, "is_written": is_written}
    print_report(out, artifact, report, as_json=as_json, **told)
