"""Fusion tuning on judged queries with cross-validation.

Each of five folds is evaluated with the setting that is best on the other four, so that no query
influences the setting it is evaluated with. This held-out value estimates that of new queries; the
value of the best setting on the queries that chose it is biased upward.

Source: Stone 1974, "Cross-validatory Choice and Assessment of Statistical Predictions".

Writes ``report.json``, ``report.html``, and ``retriever.json``: the recommended retriever.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from stillroom.errors import DataError, RecipeError
from stillroom.evaluate import (
    Metric,
    Report,
    Table,
    bootstrap,
    paired_difference,
    warn_small_sample,
)
from stillroom.evaluate.metrics.retrieval import parse_measure, score_run
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.provenance import Artifact, digest_json
from stillroom.rag.evaluation.retrieval import Qrels, choose_unit, get_judged_id, get_query_id
from stillroom.rag.evaluation.retrieval_job import (
    build_judged_parents,
    estimate_searches,
    read_judged_queries,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import DEFAULT_RETRIEVER, HybridRetriever, make_query
from stillroom.rag.retrieval.pipeline import parse_pipeline
from stillroom.rag.retrieval.ranking import Normalization

if TYPE_CHECKING:
    from stillroom.rag.jobs.fusion_tuning import FusionTuningRecipe
    from stillroom.rag.types import RankedRows

__all__ = [
    "FusionTuningResult",
    "cross_validate",
    "estimate_tuning",
    "list_fusion_settings",
    "rank_names",
    "tune_fusion",
]


_DEPTH = 100
_SHOWN_SETTINGS = 10


def estimate_tuning(recipe: FusionTuningRecipe) -> Estimate:
    """Estimate the time of tuning.

    Raises:
        DataError: If a file or the measure cannot be used.
        RecipeError: If a candidate does not fuse two lists.
    """
    parse_measure(recipe.measure)
    for pipeline in recipe.pipelines:
        _describe_fusion(pipeline)
    queries, _ = read_judged_queries(Path(recipe.queries), Path(recipe.qrels))
    return estimate_searches(2 * len(queries))


def tune_fusion(recipe: FusionTuningRecipe, job: Job) -> Artifact:
    """Choose on judged queries how keyword and dense results are fused.

    Raises:
        DataError: If a file or the measure cannot be used, or the queries are too few.
        RecipeError: If a candidate does not fuse two lists.
        Cancelled: If the user stopped it; resuming continues.
    """
    methods = {
        pipeline: _describe_fusion(pipeline)
        for pipeline in recipe.pipelines or list_fusion_settings()
    }
    queries, qrels = read_judged_queries(Path(recipe.queries), Path(recipe.qrels))
    with recipe.open_index() as index:
        passages = [index.passage_at(row) for row in range(len(index))]
        unit, _ = choose_unit(passages, qrels)
        names = [get_judged_id(passage, unit) for passage in passages]
        legs = _search(index, queries, job)
        runs = {
            pipeline: {
                query: rank_names(
                    method.fuse(lists), names, _DEPTH, get_query_id(query, unit, qrels[query])
                )
                for query, lists in legs.items()
            }
            for pipeline, method in methods.items()
        }
        tuned = cross_validate(
            runs, qrels, measure=recipe.measure, folds=recipe.folds, seed=recipe.seed
        )
        report = _report(tuned, recipe.measure, len(queries), len(index))
        report.write(job.output)
        retriever = methods[tuned.chosen].model_dump(mode="json")
        with atomic_write(job.output / "retriever.json") as file:
            chosen = {"pipeline": tuned.chosen, "retriever": retriever}
            file.write(json.dumps(chosen, indent=1) + "\n")
        return job.finish(
            "report",
            parents=build_judged_parents(recipe, job),
            details={
                "index": index.digest,
                "unit": unit,
                "pipeline": tuned.chosen,
                "is_gain": tuned.is_gain,
                **report.to_json(),
            },
        )


def _describe_fusion(pipeline: str) -> HybridRetriever:
    parsed = parse_pipeline(pipeline)
    method = parsed.retriever
    if not isinstance(method, HybridRetriever) or parsed.reranker or parsed.transform:
        raise RecipeError(
            f"{pipeline} does not fuse a keyword and a dense list",
            code="rag.not-a-fusion",
            expected="hybrid or convex with settings, without transform or reranker",
            next="compare other pipelines with 'stillroom rag eval'",
        )
    return method


def _search(index: Index, queries: Mapping[str, str], job: Job) -> dict[str, list[RankedRows]]:
    """Return the keyword and dense lists of every query."""
    journal = job.journal("legs")
    legs: dict[str, list[RankedRows]] = {}
    with job.phase("search", len(queries), "queries") as progress:
        for query, text in queries.items():
            key = digest_json([query, text, _DEPTH, index.digest])
            if key not in journal:
                job.check_cancelled()
                parsed_query = make_query(text)
                lists = (
                    index.search_keyword(parsed_query, _DEPTH),
                    index.search_dense(parsed_query, _DEPTH),
                )
                journal.put(key, [list(map(list, leg)) for leg in lists])
            legs[query] = [[(int(row), float(s)) for row, s in leg] for leg in journal[key]]
            progress.advance()
    return legs


def _explain_no_gain(tuned: FusionTuningResult) -> str:
    """Return why there is no gain: an interval that contains 0, or too few queries."""
    few = warn_small_sample(tuned.difference.n, "queries").rstrip(".")
    return f": {few}" if few else " and its interval does not lie above 0"


def _report(tuned: FusionTuningResult, measure: str, queries: int, passages: int) -> Report:
    advice = (
        f"Use {tuned.chosen}: on queries that had no part in choosing it gains "
        f"{tuned.difference.value:+.4f} over the default."
        if tuned.is_gain
        else "Nothing is gained: on queries that had no part in choosing, the difference from the "
        f"default is {tuned.difference.value:+.4f}{_explain_no_gain(tuned)}. Use {tuned.chosen}."
    )
    report = Report("Fusion", f"{queries} judged queries on {passages} passages. {advice}")
    report.add(tuned.held_out, is_headline=True)
    for metric in (tuned.default, tuned.difference, tuned.seen):
        report.add(metric)
    rows = [
        (label, f"{metric.value:.4f}", f"{metric.low:.4f}", f"{metric.high:.4f}")
        for label, metric in (
            ("default", tuned.default),
            ("chosen fold by fold, on held-out queries", tuned.held_out),
            ("held-out less default", tuned.difference),
            (f"{tuned.best}, on the queries that chose it", tuned.seen),
        )
    ]
    report.section(
        "What may be expected",
        "The last row is too high: its queries chose it.",
        table=Table(
            f"{measure} with 95 % intervals", ("what", "value", "low", "high"), tuple(rows)
        ),
    )
    order = sorted(tuned.values, key=lambda pipeline: -tuned.values[pipeline])[:_SHOWN_SETTINGS]
    report.section(
        "Best on all queries",
        "Differences of a hundredth mean little here. Chosen by fold: " + ", ".join(tuned.by_fold),
        table=Table(
            f"{measure} of {len(tuned.values)} settings, the best of them",
            ("pipeline", "value"),
            tuple((pipeline, f"{tuned.values[pipeline]:.4f}") for pipeline in order),
        ),
    )
    return report


_DEFAULT_PIPELINE = DEFAULT_RETRIEVER
_ALPHAS = tuple(step / 10 for step in range(11))
_WEIGHTS = (0.5, 1.0, 2.0)
_CONSTANTS = (10, 60)


@dataclass(frozen=True, slots=True)
class FusionTuningResult:
    """Result of tuning.

    ``held_out`` and ``difference`` (from the default) are on held-out queries; ``seen`` is the best
    setting's value on the queries that chose it, and biased upward. ``chosen`` is the
    recommendation: the default, unless the interval of the difference is above 0.
    """

    best: str
    chosen: str
    is_gain: bool
    held_out: Metric
    default: Metric
    difference: Metric
    seen: Metric
    by_fold: tuple[str, ...]
    values: Mapping[str, float]


def list_fusion_settings() -> list[str]:
    """Return the candidate pipelines, the default first."""
    pipelines = [_DEFAULT_PIPELINE, "hybrid"]
    pipelines += [
        f"hybrid:rank_constant={constant},keyword_weight={keyword:g}"
        for constant in _CONSTANTS
        for keyword in _WEIGHTS
        if (constant, keyword) != (60, 1.0)
    ]
    for normalization in get_args(Normalization):
        pipelines += [
            f"convex:alpha={alpha:g},normalization={normalization}"
            for alpha in _ALPHAS
            if (normalization, alpha) != ("minmax", 0.5)  # the default
        ]
    return pipelines


def rank_names(
    ranked: RankedRows, names: Sequence[str], depth: int, leave_out: str = ""
) -> list[tuple[str, float]]:
    """Return the distinct names of ranked rows in order of their best rows; scores are by rank."""
    distinct = dict.fromkeys(names[row] for row, _ in ranked)
    top = [name for name in distinct if name != leave_out][:depth]
    return [(name, float(len(top) - i)) for i, name in enumerate(top)]


def cross_validate(
    runs: Mapping[str, Mapping[str, list[tuple[str, float]]]],
    qrels: Qrels,
    *,
    measure: str = "ndcg@10",
    folds: int = 5,
    seed: int = 0,
) -> FusionTuningResult:
    """Choose a pipeline on some queries and evaluate it on others, fold by fold.

    The first pipeline is the default.

    Raises:
        DataError: If there are fewer than two queries per fold.
    """
    queries = list(qrels)
    if len(queries) < 2 * folds:
        raise DataError(
            f"{len(queries)} judged queries are too few for {folds} folds",
            code="rag.too-few-queries",
            expected=f"at least {2 * folds}; some hundred to distinguish settings",
            next="judge more queries, or use fewer --folds",
        )
    values = {
        pipeline: score_run(run, qrels, (measure,))[measure] for pipeline, run in runs.items()
    }
    random.Random(seed).shuffle(queries)
    held_out_values: dict[str, float] = {}
    winners = []
    for fold in range(folds):
        fold_queries = set(queries[fold::folds])
        best = _select_best(values, [query for query in queries if query not in fold_queries])
        winners.append(best)
        held_out_values.update({query: values[best][query] for query in fold_queries})
    return _score_setting(values, list(qrels), held_out_values, tuple(winners), measure, seed)


def _score_setting(
    values: Mapping[str, Mapping[str, float]],
    queries: Sequence[str],
    held_out_values: Mapping[str, float],
    winners: tuple[str, ...],
    measure: str,
    seed: int,
) -> FusionTuningResult:
    default = next(iter(values))
    best = _select_best(values, queries)
    tuned = [held_out_values[query] for query in queries]
    baseline = [values[default][query] for query in queries]
    difference = paired_difference(tuned, baseline, seed=seed, name=f"difference/{measure}")
    is_gain = difference.side() > 0
    best_values = [values[best][query] for query in queries]
    return FusionTuningResult(
        best,
        best if is_gain else default,
        is_gain,
        bootstrap(tuned, seed=seed, name=f"held-out/{measure}"),
        bootstrap(baseline, seed=seed, name=f"{default}/{measure}"),
        difference,
        bootstrap(best_values, seed=seed, name=f"seen/{measure}"),
        winners,
        {pipeline: sum(by.values()) / len(by) for pipeline, by in values.items()},
    )


def _select_best(values: Mapping[str, Mapping[str, float]], queries: Sequence[str]) -> str:
    """Return the pipeline with the highest mean; ties go to the first."""
    means = {pipeline: sum(by[query] for query in queries) for pipeline, by in values.items()}
    return max(means, key=lambda pipeline: means[pipeline])
