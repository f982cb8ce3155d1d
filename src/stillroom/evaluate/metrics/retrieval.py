"""Retrieval metrics (nDCG, MRR, MAP, recall) as trec_eval computes them, and comparison of runs.

Scores are computed by trec_eval's own code (pytrec_eval-terrier). Every judged query counts, with 0
where nothing was retrieved for it (trec_eval's ``-c``); results of unjudged queries are ignored.
Runs are compared on all judged queries or, on request, on those that each run has results for.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import DataError, MissingExtraError
from stillroom.evaluate.metrics.bootstrap import (
    Metric,
    bootstrap,
    paired_difference,
    randomization_test,
)

__all__ = [
    "Judgments",
    "Ranking",
    "RunComparison",
    "compare_runs",
    "parse_measure",
    "retrieval_metrics",
    "score_run",
]


_MAX_DIGITS = 18  # of a rank that fits 64 bits
_CUTOFF_MEASURES = {
    "ndcg": "ndcg_cut",
    "recall": "recall",
    "precision": "P",
    "success": "success",
    "map": "map_cut",
    "mrr": "recip_rank",
}

_FULL_MEASURES = {
    "map": "map",
    "mrr": "recip_rank",
    "ndcg": "ndcg",
    "rprec": "Rprec",
    "bpref": "bpref",
}

Ranking = Sequence[tuple[str, float]] | Mapping[str, float]


"""Results of one query: ids with scores, in any order."""

Judgments = Mapping[str, Mapping[str, int]]


"""Relevance of each judged id by query; above 0 is relevant."""


def retrieval_metrics(run: Mapping[str, Ranking], qrels: Judgments) -> dict[str, dict[str, float]]:
    """Return ndcg, recall and reciprocal rank of every judged query; see ``score_run``.

    nDCG's gain is the relevance itself, its discount log2.

    Returns:
        ``{"ndcg@10": {query: value}, "recall@5": {...}, "recip_rank": {...}}``.

    Raises:
        DataError: If an id was retrieved twice for one query, or a score is not a number.
        MissingExtraError: If pytrec_eval is not installed.
    """
    scores = score_run(run, qrels, ("ndcg@10", "recall@5", "mrr"))
    return {"recip_rank" if name == "mrr" else name: values for name, values in scores.items()}


def score_run(
    run: Mapping[str, Ranking],
    qrels: Judgments,
    measures: Sequence[str],
    *,
    relevance_level: int = 1,
    depth: int = 0,
) -> dict[str, dict[str, float]]:
    """Compute each measure for every judged query with trec_eval.

    Ties are broken as in trec_eval, by id, later first. Scores are passed as ranks, since
    pytrec_eval stores single precision and would tie scores that differ in the ninth digit.

    Args:
        run: Results by query.
        qrels: Relevance judgments by query.
        measures: ``ndcg@K``, ``recall@K``, ``precision@K``, ``success@K``, ``map``, ``map@K``,
            ``mrr`` (trec_eval's recip_rank, of the whole ranking), ``mrr@K``, ``ndcg``, ``rprec``
            or ``bpref``.
        relevance_level: Minimum grade of a relevant id, for all but ndcg, whose gain is the grade
            itself (trec_eval's ``-l``); 1 or more.
        depth: Cutoff of each ranking (trec_eval's ``-M``); 0 for none.

    Returns:
        By measure, then query in the order of ``qrels``; the mean over all of them is trec_eval's
        ``all`` with ``-c``.

    Raises:
        DataError: If a measure is not known, an id was retrieved twice for one query, or a score is
            not a number.
        MissingExtraError: If pytrec_eval is not installed.
    """
    with MissingExtraError.guard("pytrec-eval-terrier", "evaluate", "Measuring retrieval"):
        import pytrec_eval
    parsed = {name: parse_measure(name) for name in measures}
    ranked = {
        query: _truncate_ranks(_rank_scores(query, run.get(query, ())), depth) for query in qrels
    }
    groups: dict[tuple[int, int], dict[str, str]] = {}
    for name, (trec_name, cutoff) in parsed.items():
        cut = cutoff if trec_name == "recip_rank" else 0
        trec_measure = trec_name if cut or not cutoff else f"{trec_name}.{cutoff}"
        groups.setdefault((-1 if trec_name == "bpref" else 0, cut), {})[name] = trec_measure
    scores: dict[str, dict[str, float]] = {}
    for (least, cut), names in groups.items():
        evaluator = pytrec_eval.RelevanceEvaluator(
            _prepare_qrels(qrels, least), set(names.values()), relevance_level=relevance_level
        )
        scored = evaluator.evaluate(
            {query: _truncate_ranks(ranks, cut) for query, ranks in ranked.items() if ranks}
        )
        for name, trec_measure in names.items():
            key = trec_measure.replace(".", "_")
            scores[name] = {query: float(scored.get(query, {}).get(key, 0.0)) for query in qrels}
    return {name: scores[name] for name in parsed}


def _prepare_qrels(qrels: Judgments, least: int) -> dict[str, dict[str, int]]:
    """Return the judgments in a form safe for trec_eval, without queries that have none.

    Grades below 1 are not relevant to any measure; but grades below -1 (the web tracks' -2 for
    spam) overrun pytrec_eval's tables and may crash the process, and ``ndcg`` does not terminate
    on a query with negative grades only. Only ``bpref`` distinguishes -1 (not in the pool) from 0
    (judged not relevant).
    """
    return {
        query: {
            name: grade if grade >= least else least
            for name, grade in zip(grades, map(int, grades.values()), strict=True)
        }
        for query, grades in qrels.items()
        if grades
    }


def parse_measure(name: str) -> tuple[str, int]:
    """Return trec_eval's name of a measure and its cutoff, 0 where it has none.

    trec_eval's own names are accepted too: ``ndcg_cut_10``, ``P_5`` or ``recip_rank``.

    Raises:
        DataError: If the measure is not known.
    """
    base, separator, depth = name.partition("@")
    trec_name = (_CUTOFF_MEASURES if depth else _FULL_MEASURES).get(base, "")
    if not trec_name and not separator:
        base, _, depth = name.rpartition("_") if name[-1:].isdecimal() else (name, "", "")
        trec_name = base if base in (_CUTOFF_MEASURES if depth else _FULL_MEASURES).values() else ""
    if not trec_name or (depth and not _is_cutoff(depth)):
        raise DataError(
            f"'{name}' is not a measure of retrieval",
            code="metric.unknown-measure",
            expected="ndcg, ndcg@K, recall@K, precision@K, success@K, map, map@K, mrr, mrr@K, "
            "rprec or bpref, or trec_eval's names of them",
            next="write for instance ndcg@10",
        )
    return trec_name, int(depth or 0)


def _is_cutoff(text: str) -> bool:
    """Whether a text is a rank; trec_eval reads those beyond 64 bits as another, and scores 0."""
    return text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) > 0


def _truncate_ranks(ranks: dict[str, float], depth: int) -> dict[str, float]:
    if not depth:
        return ranks
    return dict(sorted(ranks.items(), key=lambda pair: -pair[1])[:depth])


def _rank_scores(query: str, ranking: Ranking) -> dict[str, float]:
    """Replace scores by descending integers, with ties broken as in trec_eval."""
    pairs = list(ranking.items()) if isinstance(ranking, Mapping) else list(ranking)
    scores = [score for _, score in pairs]
    if not all(map(operator.gt, scores, scores[1:])) or any(map(math.isnan, scores)):
        _check_scores(query, pairs)
        pairs.sort(key=lambda pair: (pair[1], pair[0].encode()), reverse=True)
    ranks = {name: float(len(pairs) - index) for index, (name, _) in enumerate(pairs)}
    if len(ranks) < len(pairs):
        _check_scores(query, pairs)
    return ranks


def _check_scores(query: str, pairs: Sequence[tuple[str, float]]) -> None:
    """Check that scores can be ordered.

    Raises:
        DataError: If an id occurs twice, or a score is not a number.
    """
    seen: set[str] = set()
    for name, score in pairs:
        if name in seen:
            raise DataError(
                f"'{name}' was retrieved twice for query '{query}'",
                code="metric.duplicate-hit",
                expected="every id once a query",
                next="keep its best score only, before measuring",
            )
        if math.isnan(score):
            raise DataError(
                f"the score of '{name}' for query '{query}' is not a number",
                code="metric.not-finite",
                expected="numbers that can be ordered",
                next="find why the retriever scored it so",
            )
        seen.add(name)


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Values by run, measure and query; means; differences from the first run with p-values."""

    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    means: Mapping[str, Mapping[str, Metric]]
    differences: Mapping[str, Mapping[str, tuple[Metric, float]]]

    @property
    def measures(self) -> list[str]:
        """The measures, in the order given."""
        return list(next(iter(self.means.values())))

    def list_queries(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield run, measure, query and value, to four decimals."""
        for run, scored in self.values.items():
            for measure, by_query in scored.items():
                for query, value in by_query.items():
                    yield run, measure, query, f"{value:.4f}"

    def list_means(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield run, measure, mean and interval."""
        for run, metrics in self.means.items():
            for measure, metric in metrics.items():
                yield run, measure, f"{metric.value:.4f}", _format_interval(metric, ".4f")

    def list_differences(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Yield run, measure, difference from the first run, interval and p."""
        for run, by_measure in self.differences.items():
            for measure, (metric, p) in by_measure.items():
                interval = _format_interval(metric, "+.4f")
                yield run, measure, f"{metric.value:+.4f}", interval, f"{p:.4f}"

    def to_json(self, *, per_query: bool) -> dict[str, Any]:
        """Return plain JSON values; those of every query only with ``per_query``."""
        data: dict[str, Any] = {
            "means": {
                run: {measure: metric.to_json() for measure, metric in metrics.items()}
                for run, metrics in self.means.items()
            },
            "differences": {
                run: {
                    name: {**metric.to_json(), "p": p} for name, (metric, p) in by_measure.items()
                }
                for run, by_measure in self.differences.items()
            },
        }
        return {**data, "queries": self.values} if per_query else data


def _format_interval(metric: Metric, form: str) -> str:
    """Return the interval with this format of its ends; without one the reason."""
    if math.isnan(metric.low):
        return metric.note
    return f"[{metric.low:{form}}, {metric.high:{form}}]"


def compare_runs(
    runs: Mapping[str, Mapping[str, Ranking]],
    qrels: Judgments,
    measures: Sequence[str],
    *,
    relevance_level: int = 1,
    depth: int = 0,
    answered_only: bool = False,
    seed: int = 0,
) -> RunComparison:
    """Score runs and compare each with the first, on common queries.

    ``measures``, ``relevance_level`` and ``depth`` are those of ``score_run``. With
    ``answered_only``, queries without results of a run are left out (trec_eval without ``-c``).

    Raises:
        DataError: If a measure is not known, an id occurs twice for a query, or a run has none of
            the queries.
        MissingExtraError: If pytrec_eval is not installed.
    """
    values = {}
    for name, run in runs.items():
        answered = {query: grades for query, grades in qrels.items() if query in run}
        if not answered:
            raise DataError(
                f"'{name}' has none of the {len(qrels)} judged queries",
                code="data.collection",
                expected="a run of the judged queries",
                next="check that the ids of queries are the same in both files",
            )
        values[name] = score_run(
            run,
            answered if answered_only else qrels,
            measures,
            relevance_level=relevance_level,
            depth=depth,
        )
    means = {
        name: {
            measure: bootstrap(list(by_query.values()), seed=seed, name=f"{name}/{measure}")
            for measure, by_query in scored.items()
        }
        for name, scored in values.items()
    }
    first, *other_runs = values
    differences = {
        name: {
            measure: _compare_with_first(values, first, name, measure, seed) for measure in measures
        }
        for name in other_runs
    }
    return RunComparison(values, means, differences)


def _compare_with_first(
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    first: str,
    name: str,
    measure: str,
    seed: int,
) -> tuple[Metric, float]:
    run_values, first_values = values[name][measure], values[first][measure]
    both = [query for query in first_values if query in run_values]
    pair = [[side[query] for query in both] for side in (run_values, first_values)]
    metric = paired_difference(pair[0], pair[1], seed=seed, name=f"{name} less {first}")
    return metric, randomization_test(pair[0], pair[1], seed=seed)
