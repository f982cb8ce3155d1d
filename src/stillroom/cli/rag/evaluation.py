"""``stillroom rag eval`` and ``score``: metrics of retrieval and answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    access_options,
    build_job_recipe,
    build_reader,
    command,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    path_option,
    qrels_options,
    refuse_idle_options,
    resolve_qrels,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import align_columns, print_json, print_report

if TYPE_CHECKING:
    from stillroom.recipes import Recipe

__all__ = ["eval_command", "score_command"]


@command(
    "eval",
    "stillroom rag eval index --collection scifact --out report",
    "stillroom rag eval index --queries q.jsonl --qrels q.txt --out report --pipeline convex+mmr",
    "stillroom rag eval index --answers questions.jsonl --model ./my-checkpoint --out report",
)
@click.argument("index", type=existing_path)
@qrels_options
@path_option(
    "--answers",
    help="Questions with reference answers (JSON lines, SQuAD's JSON, records): --model answers "
    "them from the index, and the answers are graded.",
)
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    help="Pipeline: [TRANSFORM>]RETRIEVER[+RERANKER], with --answers also =>ANSWERING[!drop]; "
    "the first is the baseline. Default: convex, hybrid, keyword and dense; with --answers, "
    "convex.",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measure, such as ndcg@10; the first one ranks. May be repeated.",
)
@click.option(
    "--model",
    default="",
    help="Model of transforms and rerankers (hyde); with --answers, the reader.",
)
@click.option("--judge", default="", help="With --answers: model that grades; default by words.")
@click.option(
    "--judge-mode",
    type=click.Choice(["logprob", "json"]),
    help="With --judge: compare the probabilities of yes and no, or constrain to a schema.",
)
@click.option(
    "--checker",
    default="overlap",
    help="Without --judge: support checker of statements, NAME[:KEY=VALUE,...].",
)
@path_option(
    "--labels", help="With --judge: human verdicts, JSON lines of question, pipeline and right."
)
@count_option(
    "--limit", default=0, least=0, help="With --answers: maximum number of questions; 0 is all."
)
@click.option(
    "--price",
    type=(float, float),
    default=(0.0, 0.0),
    help="With --answers: price of a million tokens, input and output.",
)
@count_option("--depth", default=100, most=1000, help="Number of ranks to judge.")
@count_option("--k", help="Number of hits shown to a reader; default 10, with --answers 3.")
@count_option("--seed", default=0, least=0, help="Random seed of the intervals.")
@access_options
@out_folder_option
@run_options
def eval_command(out: Path, as_json: bool, **options: Any) -> None:
    """Measure retrieval on judged queries, with intervals and paired differences.

    The judgments name passages, documents, paths of documents, or rows of an unpacked corpus. With
    --answers the answers are evaluated as well: correctness, faithfulness, citations, abstention
    without an answer, and for every question the stage at fault.
    """
    from stillroom.evaluate import Report

    _refuse_unused(has_answers=options["answers"] is not None)
    build = _build_answer_recipe if options["answers"] else _build_retrieval_recipe
    artifact = run_job_recipe(build(options), out, options)
    print_report(out, artifact, Report.from_json(artifact.details), as_json=as_json)


_ANSWER_OPTIONS = ("judge", "judge_mode", "checker", "labels", "limit", "price")
_RETRIEVAL_OPTIONS = ("collection", "split", "queries", "qrels", "measures")


def _refuse_unused(*, has_answers: bool) -> None:
    """Refuse options of the other evaluation, which would be ignored."""
    if has_answers:
        refuse_idle_options(_RETRIEVAL_OPTIONS, "has no effect with --answers")
    else:
        refuse_idle_options(_ANSWER_OPTIONS, "needs --answers, which are evaluated")


def _build_retrieval_recipe(options: dict[str, Any]) -> Recipe:
    from stillroom.rag.jobs.retrieval_evaluation import RetrievalEvaluationRecipe

    sources = (options[name] for name in ("collection", "split", "queries", "qrels"))
    queries, qrels = resolve_qrels(*sources)
    return build_job_recipe(
        RetrievalEvaluationRecipe,
        queries=queries,
        qrels=qrels,
        measures=list(options["measures"]) or None,
        **_read_shared_options(options),
    )


def _build_answer_recipe(options: dict[str, Any]) -> Recipe:
    from stillroom.rag.interfaces import CHECKERS
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe
    from stillroom.rag.retrieval.pipeline import parse_method

    if not options["model"]:
        raise click.UsageError("--answers needs --model, which answers the questions")
    labels = options["labels"]
    if options["judge_mode"] and not options["judge"]:
        raise click.UsageError("--judge-mode needs --judge, the model that grades")
    if labels and not options["judge"]:
        raise click.UsageError("--labels needs --judge: its verdicts are compared with the labels")
    judge = {
        "model": options["judge"],
        "mode": options["judge_mode"],
        "labels": str(labels) if labels else None,
    }
    checker = parse_method(CHECKERS, options["checker"]).model_dump(mode="json")
    prompt_price, completion_price = options["price"]
    return build_job_recipe(
        AnswerEvaluationRecipe,
        questions=options["answers"],
        judge=judge if options["judge"] else {"checker": checker},
        max_questions=options["limit"],
        prices={"prompt": prompt_price, "completion": completion_price},
        **_read_shared_options(options),
    )


def _read_shared_options(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": options["index"],
        "reader": build_reader(options["tenant"], options["principals"]),
        "pipelines": list(options["pipelines"]) or None,
        "model": options["model"] or None,
        "depth": options["depth"],
        "k": options["k"],
        "seed": options["seed"],
    }


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
        click.echo(align_columns([("run", "measure", "query", "value"), *scored.list_queries()]))
        click.echo()
    click.echo(align_columns([("run", "measure", "value", "95 % interval"), *scored.list_means()]))
    if len(runs) > 1:
        head = ("run", "measure", "minus the first", "95 % interval", "p")
        click.echo("\n" + align_columns([head, *scored.list_differences()]))


def _list_run_names(runs: tuple[Path, ...]) -> list[str]:
    """Return the files' names without suffixes, or whole paths if two names are the same."""
    stems = [path.stem for path in runs]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in runs]
