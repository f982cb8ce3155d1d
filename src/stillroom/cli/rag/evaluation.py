"""``stillroom rag score``: run files compared by ``evaluate.metrics.retrieval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import (
    command,
    count_option,
    existing_path,
    flag_option,
    output_options,
)
from stillroom.cli.output import align_columns, print_json, print_text

__all__ = ["score_command"]


@command(
    "score",
    "stillroom rag score qrels.txt run.trec",
    "stillroom rag score qrels.txt mine.trec theirs.trec --measure ndcg@10 --measure map",
)
@click.argument("qrels", type=existing_path)
@click.argument("runs", type=existing_path, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measure: ndcg@10, recall@100, map, mrr. May be repeated.",
)
@count_option(
    "--relevance-level",
    default=1,
    most=2**31 - 1,  # trec_eval reads it into 32 bits
    show_default=True,
    help="Minimum grade of a relevant id, for all measures but ndcg (trec_eval's -l).",
)
@count_option("--depth", default=0, least=0, help="Number of ranks to read (trec_eval's -M).")
@flag_option(
    "--answered-only",
    help="Average over the queries that a run answers (trec_eval without -c); favors a run that "
    "omits queries.",
)
@flag_option("--per-query", help="List every query as well (trec_eval's -q).")
@output_options
def score_command(
    qrels: Path,
    runs: tuple[Path, ...],
    measures: tuple[str, ...],
    per_query: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score run files as trec_eval does, with intervals, and compare them with the first.

    Reads judgments and runs of TREC, and judgments of BEIR or as JSON lines. Every judged query
    counts, as 0 if a run has no results for it (trec_eval's -c).
    """
    from stillroom.evaluate.metrics.retrieval import compare_runs
    from stillroom.evaluate.qa.collections import read_qrels, read_run
    from stillroom.rag.jobs.retrieval_evaluation import DEFAULT_MEASURES

    scored = compare_runs(
        {name: read_run(path) for name, path in zip(_list_run_names(runs), runs, strict=True)},
        read_qrels(qrels),
        measures or DEFAULT_MEASURES,
        **settings,
    )
    if as_json:
        print_json(scored.to_json(per_query=per_query))
        return
    if per_query:
        print_text(align_columns([("run", "measure", "query", "value"), *scored.list_queries()]))
        print_text()
    print_text(align_columns([("run", "measure", "value", "95 % interval"), *scored.list_means()]))
    if len(runs) > 1:
        head = ("run", "measure", "minus the first", "95 % interval", "p")
        print_text("\n" + align_columns([head, *scored.list_differences()]))


def _list_run_names(runs: tuple[Path, ...]) -> list[str]:
    """Return the files' names without suffixes, or whole paths if two names are the same.

    Raises:
        UsageError: If a file is given twice.
    """
    if len(set(runs)) < len(runs):
        raise click.UsageError("a RUN is given twice; give each file once")
    stems = [path.stem for path in runs]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in runs]
