"""Choosing how keyword and dense lists are fused, on judged queries, without fooling oneself.

Each of five folds is measured by the setting that is best on the other four, so that no query helps
to choose what it is measured with. That held-out value is what new queries may expect; the value of
the best setting on the queries that chose it is not. Knows no files.

Source: Stone 1974, "Cross-validatory Choice and Assessment of Statistical Predictions".
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from stillroom.errors import DataError
from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.retrieval import score_run
from stillroom.rag.fusion import Normalization, Ranked
from stillroom.rag.measuring.evaluation import Qrels
from stillroom.rag.method import DEFAULT_RETRIEVER

__all__ = ["DEFAULT_WAY", "Tuned", "cross_validate", "list_settings", "rank_names"]

DEFAULT_WAY = DEFAULT_RETRIEVER
_ALPHAS = tuple(step / 10 for step in range(11))
_WEIGHTS = (0.5, 1.0, 2.0)
_CONSTANTS = (10, 60)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning found.

    ``held_out`` and ``difference`` (from the default) are of queries that had no part in choosing;
    ``seen`` is the best setting's value on the queries that chose it, and too high. ``chosen`` is
    what to use: the default, unless the interval of the difference lies above 0.
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


def list_settings() -> list[str]:
    """Return the ways that are tried, the default first."""
    ways = [DEFAULT_WAY, "hybrid"]
    ways += [
        f"hybrid:rank_constant={constant},keyword_weight={keyword:g}"
        for constant in _CONSTANTS
        for keyword in _WEIGHTS
        if (constant, keyword) != (60, 1.0)
    ]
    for normalization in get_args(Normalization):
        ways += [
            f"convex:alpha={alpha:g},normalization={normalization}"
            for alpha in _ALPHAS
            if (normalization, alpha) != ("minmax", 0.5)  # that is the default
        ]
    return ways


def rank_names(
    ranked: Ranked, names: Sequence[str], depth: int, leave_out: str = ""
) -> list[tuple[str, float]]:
    """Return the names of ranked rows, each once where its best row stands; scores are places.

    Args:
        ranked: Rows, best first.
        names: Of every row.
        depth: How many names are kept.
        leave_out: A name that is not counted as found.
    """
    found = dict.fromkeys(names[row] for row, _ in ranked)
    kept = [name for name in found if name != leave_out][:depth]
    return [(name, float(len(kept) - at)) for at, name in enumerate(kept)]


def cross_validate(
    runs: Mapping[str, Mapping[str, list[tuple[str, float]]]],
    qrels: Qrels,
    *,
    measure: str = "ndcg@10",
    folds: int = 5,
    seed: int = 0,
) -> Tuned:
    """Choose a way on some queries and measure it on others, fold by fold.

    Args:
        runs: What each way finds, by query; the first way is the default.
        qrels: What is relevant.
        measure: What is made as high as can be.
        folds: Into how many parts the queries are dealt; 2 or more.
        seed: Of the dealing and of the intervals.

    Raises:
        DataError: If there are fewer queries than two a fold.
    """
    queries = list(qrels)
    if len(queries) < 2 * folds:
        raise DataError(
            f"{len(queries)} judged queries are too few for {folds} folds",
            code="rag.too-few-queries",
            expected=f"at least {2 * folds}; some hundred to tell settings apart",
            next="judge more queries, or give fewer --folds",
        )
    values = {way: score_run(run, qrels, (measure,))[measure] for way, run in runs.items()}
    random.Random(seed).shuffle(queries)
    own: dict[str, float] = {}
    winners = []
    for fold in range(folds):
        held = set(queries[fold::folds])
        best = _best(values, [query for query in queries if query not in held])
        winners.append(best)
        own.update({query: values[best][query] for query in held})
    return _judge(values, list(qrels), own, tuple(winners), measure, seed)


def _judge(
    values: Mapping[str, Mapping[str, float]],
    queries: Sequence[str],
    own: Mapping[str, float],
    winners: tuple[str, ...],
    measure: str,
    seed: int,
) -> Tuned:
    default = next(iter(values))
    best = _best(values, queries)
    ours = [own[query] for query in queries]
    theirs = [values[default][query] for query in queries]
    difference = paired_difference(ours, theirs, seed=seed, name=f"difference/{measure}")
    is_gain = difference.side() > 0
    seen = [values[best][query] for query in queries]
    return Tuned(
        best,
        best if is_gain else default,
        is_gain,
        bootstrap(ours, seed=seed, name=f"held-out/{measure}"),
        bootstrap(theirs, seed=seed, name=f"{default}/{measure}"),
        difference,
        bootstrap(seen, seed=seed, name=f"seen/{measure}"),
        winners,
        {way: sum(by.values()) / len(by) for way, by in values.items()},
    )


def _best(values: Mapping[str, Mapping[str, float]], queries: Sequence[str]) -> str:
    """Return the way with the highest mean; of equals the one that is tried first."""
    means = {way: sum(by[query] for query in queries) for way, by in values.items()}
    return max(means, key=lambda way: means[way])
