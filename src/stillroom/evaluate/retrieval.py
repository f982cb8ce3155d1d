"""Retrieval measures with trec_eval's semantics: ndcg@10, recall@5, reciprocal rank.

Scores are computed by trec_eval's own code (pytrec_eval-terrier). Every judged query counts, with 0
where nothing was retrieved for it (trec_eval's ``-c``); what was retrieved for queries nobody
judged is left out. Knows ids and scores only, no passages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stillroom.errors import DataError, MissingExtraError

__all__ = ["Judgements", "Ranking", "retrieval_metrics"]

Ranking = Sequence[tuple[str, float]] | Mapping[str, float]
"""What was retrieved for one query: ids with scores, in any order."""

Judgements = Mapping[str, Mapping[str, int]]
"""For each query the relevance of each judged id; above 0 is relevant."""


def retrieval_metrics(
    run: Mapping[str, Ranking],
    qrels: Judgements,
    *,
    ndcg_at: int = 10,
    recall_at: int = 5,
) -> dict[str, dict[str, float]]:
    """Return for each measure the value of every judged query.

    Ties are broken as trec_eval does, by id, later first. Scores are handed over as ranks, because
    pytrec_eval keeps them in single precision and would tie what differs in the ninth digit.

    Args:
        run: What was retrieved, by query.
        qrels: What is relevant, by query.
        ndcg_at: Depth of the discounted gain (gain is the relevance itself, discount log2).
        recall_at: Depth of recall.

    Returns:
        ``{"ndcg@10": {query: value}, "recall@5": {...}, "recip_rank": {...}}``, queries in the
        order of ``qrels``; a mean over all of them is trec_eval's ``all``.

    Raises:
        DataError: If an id was retrieved twice for one query, or a score is not a number.
        MissingExtraError: If pytrec_eval is not installed.
    """
    try:
        import pytrec_eval
    except ImportError as error:
        raise MissingExtraError.of(
            "pytrec-eval-terrier", "evaluate", "Measuring retrieval"
        ) from error
    ranked = {query: _rank(query, run.get(query, ())) for query in qrels}
    judged = {
        query: {name: int(grade) for name, grade in grades.items()}
        for query, grades in qrels.items()
        if grades
    }
    evaluator = pytrec_eval.RelevanceEvaluator(
        judged, {f"ndcg_cut.{ndcg_at}", f"recall.{recall_at}", "recip_rank"}
    )
    found = evaluator.evaluate({query: ranks for query, ranks in ranked.items() if ranks})
    names = {
        f"ndcg@{ndcg_at}": f"ndcg_cut_{ndcg_at}",
        f"recall@{recall_at}": f"recall_{recall_at}",
        "recip_rank": "recip_rank",
    }
    return {
        ours: {query: float(found.get(query, {}).get(theirs, 0.0)) for query in qrels}
        for ours, theirs in names.items()
    }


def _rank(query: str, ranking: Ranking) -> dict[str, float]:
    """Return descending whole numbers in place of the scores, ties broken as trec_eval does."""
    pairs = list(ranking.items()) if isinstance(ranking, Mapping) else list(ranking)
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
    by_name = sorted(pairs, key=lambda pair: pair[0].encode(), reverse=True)
    order = sorted(by_name, key=lambda pair: pair[1], reverse=True)
    return {name: float(len(order) - at) for at, (name, _) in enumerate(order)}
