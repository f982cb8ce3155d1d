"""Run files against judgements: trec_eval's values, their intervals, and runs against the first.

What the runs hold in common is a set of queries: those that are judged, or, where that is asked,
those that both the judgements and a run have. Knows ids and scores only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.evaluate.metrics import Metric, bootstrap, paired_difference, randomization_test
from stillroom.evaluate.retrieval import Judgements, Ranking, score_run

__all__ = ["ScoredRuns", "compare_runs"]


@dataclass(frozen=True, slots=True)
class ScoredRuns:
    """Values by run, measure and query; means; differences from the first run with p-values."""

    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    means: Mapping[str, Mapping[str, Metric]]
    differences: Mapping[str, Mapping[str, tuple[Metric, float]]]

    def list_queries(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield run, measure, query and value, to four decimals."""
        for run, scored in self.values.items():
            for measure, by_query in scored.items():
                for query, value in by_query.items():
                    yield run, measure, query, f"{value:.4f}"

    def list_means(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield run, measure, mean and interval."""
        for run, metrics in self.means.items():
            for measure, one in metrics.items():
                interval = f"[{one.low:.4f}, {one.high:.4f}]" if one.low == one.low else one.note
                yield run, measure, f"{one.value:.4f}", interval

    def list_differences(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Yield run, measure, difference from the first run, interval and p."""
        for run, by_measure in self.differences.items():
            for measure, (one, p) in by_measure.items():
                interval = f"[{one.low:+.4f}, {one.high:+.4f}]" if one.low == one.low else one.note
                yield run, measure, f"{one.value:+.4f}", interval, f"{p:.4f}"

    def to_json(self, *, per_query: bool) -> dict[str, Any]:
        """Return plain JSON values; every query's only where that is asked."""
        told: dict[str, Any] = {
            "means": {
                run: {measure: one.to_json() for measure, one in metrics.items()}
                for run, metrics in self.means.items()
            },
            "differences": {
                run: {name: {**one.to_json(), "p": p} for name, (one, p) in found.items()}
                for run, found in self.differences.items()
            },
        }
        return {**told, "queries": self.values} if per_query else told


def compare_runs(
    runs: Mapping[str, Mapping[str, Ranking]],
    qrels: Judgements,
    measures: Sequence[str],
    *,
    relevance_level: int = 1,
    depth: int = 0,
    answered_only: bool = False,
    seed: int = 0,
) -> ScoredRuns:
    """Score runs and compare each with the first, on the queries that both count.

    Args:
        runs: What was retrieved, by run and query.
        qrels: What is relevant.
        measures: As ``score_run`` takes them.
        relevance_level: trec_eval's ``-l``.
        depth: trec_eval's ``-M``; 0 reads all.
        answered_only: Leave out queries that a run has nothing for (trec_eval without ``-c``).
        seed: Of intervals and tests.

    Raises:
        DataError: If a measure is not known, or an id comes twice for a query.
        MissingExtraError: If pytrec_eval is not installed.
    """
    values = {}
    for name, run in runs.items():
        kept = {query: grades for query, grades in qrels.items() if query in run}
        values[name] = score_run(
            run,
            kept if answered_only else qrels,
            measures,
            relevance_level=relevance_level,
            depth=depth,
        )
    means = {
        name: {
            measure: bootstrap(list(by_query.values()), seed=seed, name=measure)
            for measure, by_query in scored.items()
        }
        for name, scored in values.items()
    }
    first, *others = values
    differences = {
        name: {measure: _differ(values, first, name, measure, seed) for measure in measures}
        for name in others
    }
    return ScoredRuns(values, means, differences)


def _differ(
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    first: str,
    name: str,
    measure: str,
    seed: int,
) -> tuple[Metric, float]:
    ours, theirs = values[name][measure], values[first][measure]
    both = [query for query in theirs if query in ours]
    pair = [[side[query] for query in both] for side in (ours, theirs)]
    metric = paired_difference(pair[0], pair[1], seed=seed, name=f"{name} less {first}")
    return metric, randomization_test(pair[0], pair[1], seed=seed)
