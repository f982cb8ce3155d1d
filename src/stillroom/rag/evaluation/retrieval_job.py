"""Job that searches judged queries with each pipeline, and reports what ``retrieval`` measures.

Writes ``report.json`` and ``report.html``, one TREC run file per pipeline under ``runs/``, and
``queries.jsonl``: documents missed by the first pipeline for each query, worst query first, with
the stage that lost them.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, count_noun
from stillroom.evaluate import Plot, Report, Table, warn_small_sample
from stillroom.evaluate.metrics.retrieval import RunComparison, compare_runs, parse_measure
from stillroom.evaluate.qa.collections import read_qrels, read_queries, write_run
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.provenance import Artifact, Parent, digest_file, digest_json, make_parent
from stillroom.rag.evaluation.retrieval import (
    MissedDocument,
    QueryResult,
    RunResults,
    choose_unit,
    format_metric,
    get_query_id,
    list_missed_documents,
    search_query,
    summarize_times,
    tabulate_notices,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import HybridRetriever, make_query
from stillroom.rag.model_calls import open_optional_model
from stillroom.rag.retrieval.pipeline import RetrievalPipeline, parse_pipeline
from stillroom.rag.retrievers.dense import Dense

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.jobs.retrieval_evaluation import RetrievalEvaluationRecipe

__all__ = [
    "build_run_name",
    "estimate_retrieval",
    "evaluate_retrieval",
    "parse_pipelines",
    "read_judged_queries",
]


_SECONDS_PER_SEARCH = 0.05


def estimate_retrieval(recipe: RetrievalEvaluationRecipe) -> Estimate:
    """Estimate the time of an evaluation.

    Raises:
        DataError: If a file or a measure cannot be used.
        RecipeError: If a pipeline names an unknown method.
    """
    for measure in recipe.measures:
        parse_measure(measure)
    pipelines = parse_pipelines(recipe.pipelines)
    queries, _ = read_judged_queries(Path(recipe.queries), Path(recipe.qrels))
    count = len(queries) * len(pipelines)
    return Estimate(
        memory_bytes=600_000_000,
        seconds=count * _SECONDS_PER_SEARCH,
        basis=f"{count} searches at {_SECONDS_PER_SEARCH} s",
    )


def evaluate_retrieval(recipe: RetrievalEvaluationRecipe, job: Job) -> Artifact:
    """Search the index for every judged query with every pipeline, and report the results.

    Raises:
        DataError: If a file or a measure cannot be used, or no judged id is in the index.
        RecipeError: If a pipeline names an unknown method.
        Cancelled: If the user stopped it; resuming continues.
    """
    pipelines = parse_pipelines(recipe.pipelines, day=job.first_day)
    deeper = [name for name in recipe.measures if parse_measure(name)[1] > recipe.depth]
    if deeper:
        job.warn(f"{', '.join(deeper)} see no further than depth, {recipe.depth} ranks")
    queries, qrels = read_judged_queries(Path(recipe.queries), Path(recipe.qrels))
    with recipe.open_index() as index, open_optional_model(recipe.model) as model:
        evaluation = _RetrievalEvaluation(recipe, pipelines, queries, qrels, index, model, job)
        results = evaluation.search()
        runs = {result.pipeline: result.run() for result in results}
        board = compare_runs(runs, qrels, recipe.measures, seed=recipe.seed)
        misses = list_missed_documents(results[0], qrels, evaluation.known, k=recipe.k)
        for number, (name, run) in enumerate(runs.items()):
            write_run(job.output / "runs" / build_run_name(number, name), run)
        _write_queries(job.output / "queries.jsonl", queries, board, results[0], misses)
        report = evaluation.report(board, results, misses)
        report.write(job.output)
        return job.finish(
            "report",
            parents=[
                make_parent("index", Path(recipe.index), job.out),
                Parent("queries", recipe.queries, digest_file(Path(recipe.queries))),
                Parent("qrels", recipe.qrels, digest_file(Path(recipe.qrels))),
            ],
            details={
                "index": index.digest,
                "unit": evaluation.unit,
                "queries": len(queries),
                **report.to_json(),
            },
        )


def parse_pipelines(
    texts: Sequence[str],
    parse: Callable[[str], RetrievalPipeline] = parse_pipeline,
    *,
    day: date | None = None,
) -> list[RetrievalPipeline]:
    """Parse pipelines from lines.

    ``parse`` defaults to pipelines of retrieval only; from ``day`` the ages of documents count.

    Raises:
        DataError: If one is given twice.
        RecipeError: If one names an unknown method.
    """
    pipelines = [parse(text) if day is None else parse(text).on_day(day) for text in texts]
    if len({pipeline.name for pipeline in pipelines}) < len(pipelines):
        raise DataError(
            "a pipeline is given twice",
            code="rag.pipelines",
            where=", ".join(texts),
            expected="distinct pipelines",
            next="remove one",
        )
    return pipelines


def read_judged_queries(
    queries: Path, qrels: Path
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return the queries with at least one relevant judgment, and their judgments.

    Raises:
        DataError: If nothing is judged relevant, or a judged query has no text.
    """
    texts, judgments = read_queries(queries), read_qrels(qrels)
    judged = {
        query: grades
        for query, grades in judgments.items()
        if any(grade > 0 for grade in grades.values())
    }
    lost = [query for query in judged if query not in texts]
    if lost or not judged:
        raise DataError(
            f"{len(lost)} judged queries have no text" if lost else "nothing is judged relevant",
            code="data.collection",
            where=f"{queries}, for instance {lost[0]!r:.60}" if lost else str(qrels),
            expected="a text for every judged query, and a relevance above 0",
            next="check that queries and judgments belong together",
        )
    return {query: texts[query] for query in judged}, judged


class _RetrievalEvaluation:
    """Searches of the judged queries, and their report."""

    def __init__(
        self,
        recipe: RetrievalEvaluationRecipe,
        pipelines: Sequence[RetrievalPipeline],
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, int]],
        index: Index,
        model: TextModel | None,
        job: Job,
    ) -> None:
        self.recipe, self.pipelines, self.queries = recipe, pipelines, queries
        self.index, self.model, self.job = index, model, job
        passages = (index.passage_at(row) for row in range(len(index)))
        self.unit, self.known = choose_unit(passages, qrels)
        self.query_ids = {query: get_query_id(query, self.unit, qrels[query]) for query in queries}
        self._embedded = job.journal("embedded")
        self._embeds = any(
            isinstance(pipeline.retriever, (HybridRetriever, Dense)) for pipeline in pipelines
        )

    def _embed(self, text: str) -> None:
        """Cache a query's vector before the pipelines are timed, and journal the time it took."""
        if not self._embeds:
            return
        started = time.perf_counter()
        self.index.embed_query(make_query(text))
        if (key := digest_json([text, self.index.digest])) not in self._embedded:
            self._embedded.put(key, (time.perf_counter() - started) * 1000)

    def _describe_embedding(self) -> str:
        """Return the end of the report's sentence on timing."""
        if not self._embeds:
            return "."
        keys = [digest_json([text, self.index.digest]) for text in self.queries.values()]
        middle = statistics.median(self._embedded[key] for key in keys)
        return f", without the query's embedding, which took {middle:.1f} ms (median)."

    def search(self) -> list[RunResults]:
        """Search with all pipelines in turn for each query, so that none has a warmer machine."""
        job, queries, depth = self.job, self.queries, self.recipe.depth
        journal = job.journal("searches")
        model_mark = self.model.fingerprint if self.model is not None else ""
        search = partial(search_query, self.index, unit=self.unit, depth=depth, model=self.model)
        moments = {pipeline.name: pipeline.moment for pipeline in self.pipelines}
        keys = {}
        for query, text in queries.items():
            others = (self.unit, depth, self.index.digest, model_mark, self.query_ids[query])
            for pipeline in self.pipelines:
                key = digest_json([pipeline.name, query, text, *others, moments[pipeline.name]])
                keys[pipeline.name, query] = key
        done = sum(key in journal for key in keys.values())
        warm = done == len(keys)
        with job.phase("search", len(keys), "searches", done=done) as progress:
            for query, text in queries.items():
                for pipeline in self.pipelines:
                    key = keys[pipeline.name, query]
                    if key in journal:
                        continue
                    job.check_cancelled()
                    if not warm:  # opens the embedder; another text, so that no vector is cached
                        for warmed in self.pipelines:
                            search(warmed, f"{text} ?")
                        warm = True
                    self._embed(text)
                    result = search(pipeline, text, leave_out=self.query_ids[query])
                    times = result.seconds, result.cpu_seconds
                    row = [result.ranked, result.first, *times, result.notices, result.stage_ms]
                    journal.put(key, row)
                    progress.advance()
        return [
            RunResults(
                pipeline.name,
                {
                    query: _read_results(journal[keys[pipeline.name, query]])
                    for query in self.queries
                },
            )
            for pipeline in self.pipelines
        ]

    def report(
        self,
        board: RunComparison,
        results: Sequence[RunResults],
        misses: Mapping[str, Sequence[MissedDocument]],
    ) -> Report:
        """Build the report; the first result is the baseline."""
        first, queries = self.recipe.measures[0], self.queries
        left_out = len(self.known & set(self.query_ids.values()))
        note = f" {left_out} of them are rows of the corpus, and no hits of their own."
        report = Report(
            "Retrieval",
            f"{count_noun(len(queries), 'judged query', 'judged queries')} on "
            f"{count_noun(len(self.index), 'passage')}, judged by {self.unit}. "
            "Intervals are 95 % bootstrap over queries; a difference counts where its interval "
            "leaves out 0."
            + (note if left_out else "")
            + f" {warn_small_sample(len(queries), 'query', 'queries')}".rstrip(),
        )
        for outcome in results:
            for measure, metric in board.means[outcome.pipeline].items():
                report.add(metric, is_headline=measure == first)
        rows = [metrics[first] for metrics in board.means.values()]
        report.section(
            "Pipelines",
            f"What each pipeline finds. Times are a query's at depth {self.recipe.depth}"
            f"{self._describe_embedding()}",
            table=_tabulate_results(board, results),
            plot=Plot.of(first, rows, labels=[outcome.pipeline for outcome in results]),
        )
        report.section(
            "Where the time goes",
            "Medians over queries, in milliseconds; retrieve holds what is searched and fused. "
            "Embed is next to nothing where the query's vector is remembered.",
            table=_tabulate_stages(results),
        )
        if board.differences:
            report.section(
                f"Against {results[0].pipeline}",
                "On the same queries; p by Fisher's randomization, not corrected for their number.",
                table=_tabulate_differences(board),
            )
        notices = tabulate_notices(
            (outcome.pipeline, text)
            for outcome in results
            for result in outcome.searched.values()
            for text in result.notices
        )
        if notices is not None:
            report.section(
                "Done otherwise than asked", "The figures hold these queries too.", table=notices
            )
        report.section(
            "Where it is lost",
            f"Relevant ones that are not among the first {self.recipe.k} of "
            f"{results[0].pipeline}, by the stage that lost them; queries.jsonl lists every one.",
            table=_add_worst(queries, board.values[results[0].pipeline][first], misses),
        )
        return report


def _read_results(row: Sequence[Any]) -> QueryResult:
    return QueryResult(tuple(row[0]), tuple(row[1]), row[2], row[3], tuple(row[4]), row[5])


def _write_queries(
    path: Path,
    queries: Mapping[str, str],
    board: RunComparison,
    results: RunResults,
    misses: Mapping[str, Sequence[MissedDocument]],
) -> None:
    values = board.values[results.pipeline]
    order = sorted(queries, key=lambda query: (values[board.measures[0]][query], query))
    with atomic_write(path) as file:
        for query in order:
            row = {
                "query": query,
                "text": queries[query],
                "values": {measure: values[measure][query] for measure in board.measures},
                "missed": [
                    {"id": miss.name, "rank": miss.rank, "stage": miss.stage}
                    for miss in misses[query]
                ],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def build_run_name(number: int, pipeline: str) -> str:
    """Return the name of the run file of a pipeline."""
    name = "".join(char if char.isalnum() else "-" for char in pipeline)[:60]
    return f"{number}-{name}.trec"


_WORST_QUERIES = 20
_SHOWN_CHARACTERS = 160


def _tabulate_results(board: RunComparison, results: Sequence[RunResults]) -> Table:
    rows = []
    for outcome in results:
        cpu = summarize_times([result.cpu_seconds for result in outcome.searched.values()])
        wall = summarize_times([result.seconds for result in outcome.searched.values()])
        cells = [
            format_metric(board.means[outcome.pipeline][measure]) for measure in board.measures
        ]
        rows.append((outcome.pipeline, *cells, f"{cpu['median_ms']:.1f}", f"{wall['p95_ms']:.1f}"))
    columns = ("pipeline", *board.measures, "CPU ms (median)", "ms (p95)")
    return Table("figures with 95 % intervals", columns, tuple(rows))


def _tabulate_stages(results: Sequence[RunResults]) -> Table:
    names: dict[str, None] = {}
    for outcome in results:
        for result in outcome.searched.values():
            names.update(dict.fromkeys(result.stage_ms))
    rows = []
    for outcome in results:
        searched = list(outcome.searched.values())
        stage_times = (
            [result.stage_ms[name] for result in searched if name in result.stage_ms]
            for name in names
        )
        cells = (f"{statistics.median(times):.2f}" if times else "" for times in stage_times)
        rows.append((outcome.pipeline, *cells))
    return Table("milliseconds by stage", ("pipeline", *names), tuple(rows))


def _tabulate_differences(board: RunComparison) -> Table:
    rows = [
        (pipeline, measure, format_metric(metric, sign=True), f"{p:.4f}")
        for pipeline, by_measure in board.differences.items()
        for measure, (metric, p) in by_measure.items()
    ]
    return Table("pipeline less the first", ("pipeline", "measure", "difference", "p"), tuple(rows))


def _add_worst(
    queries: Mapping[str, str],
    values: Mapping[str, float],
    misses: Mapping[str, Sequence[MissedDocument]],
) -> Table:
    stages = Counter(miss.stage for missed in misses.values() for miss in missed)
    order = sorted(queries, key=lambda query: (values[query], query))
    rows = [
        (
            query,
            queries[query][:_SHOWN_CHARACTERS],
            f"{values[query]:.3f}",
            _describe_missed(misses[query]),
        )
        for query in order[:_WORST_QUERIES]
        if misses[query]
    ]
    counts = ", ".join(f"{count} {stage}" for stage, count in stages.most_common()) or "none"
    return Table(
        f"lost by stage: {counts}; worst queries", ("id", "query", "value", "lost"), tuple(rows)
    )


def _describe_missed(misses: Sequence[MissedDocument]) -> str:
    return "; ".join(
        f"{miss.name[:60]} ({miss.stage}{f', rank {miss.rank}' if miss.rank else ''})"
        for miss in misses[:3]
    )
