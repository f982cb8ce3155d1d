"""``stillroom rag score``: run files of any tool against judgements, as trec_eval scores them."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.judged import align_columns
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "score",
    epilog="""
\b
Examples:
  stillroom rag score qrels.txt run.trec
  stillroom rag score qrels.txt mine.trec theirs.trec --measure ndcg@10 --measure map
""",
)
@click.argument("qrels", type=existing_path)
@click.argument("runs", type=existing_path, nargs=-1, required=True, metavar="RUN...")
@click.option("--measure", "measures", multiple=True, help="As ndcg@10, recall@100, map, mrr.")
@click.option(
    "--relevance-level",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="From which grade on an id is relevant, for all but ndcg (trec_eval's -l).",
)
@click.option(
    "--depth", type=click.IntRange(0), default=0, help="Ranks that are read (trec_eval's -M)."
)
@click.option(
    "--answered-only",
    is_flag=True,
    help="Average over the queries that a run answers (trec_eval without -c); flatters a run that "
    "is silent.",
)
@click.option("--per-query", is_flag=True, help="List every query, too (trec_eval's -q).")
@json_option
@debug_option
def command(
    qrels: Path,
    runs: tuple[Path, ...],
    measures: tuple[str, ...],
    relevance_level: int,
    depth: int,
    answered_only: bool,
    per_query: bool,
    as_json: bool,
) -> None:
    """Score run files as trec_eval does, with intervals, and compare them with the first.

    Judgements and runs are TREC's; BEIR's and JSON lines of judgements are read, too. Every judged
    query counts, with 0 where a run has nothing for it (trec_eval's -c).
    """
    from stillroom.evaluate.collections import read_qrels, read_run
    from stillroom.evaluate.scoring import compare_runs
    from stillroom.rag.measuring.evaluation import DEFAULT_MEASURES

    scored = compare_runs(
        {name: read_run(path) for name, path in zip(_name(runs), runs, strict=True)},
        read_qrels(qrels),
        measures or DEFAULT_MEASURES,
        relevance_level=relevance_level,
        depth=depth,
        answered_only=answered_only,
    )
    if as_json:
        print_json(scored.to_json(per_query=per_query))
        return
    if per_query:
        click.echo(align_columns([("run", "measure", "query", "value"), *scored.list_queries()]))
        click.echo()
    click.echo(align_columns([("run", "measure", "value", "95 % interval"), *scored.list_means()]))
    if len(runs) > 1:
        head = ("run", "measure", "less the first", "95 % interval", "p")
        click.echo("\n" + align_columns([head, *scored.list_differences()]))


def _name(runs: tuple[Path, ...]) -> list[str]:
    """Return the files' names without their endings, or whole paths where two are the same."""
    stems = [path.stem for path in runs]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in runs]
