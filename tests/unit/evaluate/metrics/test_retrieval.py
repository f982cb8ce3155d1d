import math
import sys

import pytest

from stillroom.errors import DataError, MissingExtraError
from stillroom.evaluate.metrics.retrieval import retrieval_metrics, score_run


def test_perfect_ranking_scores_one():
    found = retrieval_metrics({"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1}})
    assert [found[name]["q"] for name in ("ndcg@10", "recall@5", "recip_rank")] == [1, 1, 1]


def test_second_place_by_hand():
    found = retrieval_metrics({"q": {"a": 1.0, "b": 2.0}}, {"q": {"a": 1}})
    assert found["ndcg@10"]["q"] == pytest.approx(1 / math.log2(3))
    assert found["recip_rank"]["q"] == 0.5


def test_a_query_without_hits_counts_as_zero():
    found = retrieval_metrics({"q1": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {}})
    assert found["recall@5"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0}


def test_unjudged_queries_are_left_out():
    assert list(retrieval_metrics({"x": {"a": 1.0}}, {"q": {"a": 1}})["recall@5"]) == ["q"]


def test_scores_that_single_precision_would_tie_are_told_apart():
    run = {"q": [("b", 1.0), ("a", 1.0 + 1e-9)]}
    assert retrieval_metrics(run, {"q": {"a": 1}})["recip_rank"]["q"] == 1.0


def test_ties_go_to_the_later_id_as_in_trec_eval():
    run = {"q": [("a", 1.0), ("b", 1.0)]}
    assert retrieval_metrics(run, {"q": {"a": 1}})["recip_rank"]["q"] == 0.5


def test_a_duplicate_is_named():
    with pytest.raises(DataError, match="'a' was retrieved twice for query 'q7'") as caught:
        retrieval_metrics({"q7": [("a", 1.0), ("a", 0.5)]}, {"q7": {"a": 1}})
    assert caught.value.code == "metric.duplicate-hit"


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(DataError) as caught:
        retrieval_metrics({"q": [("a", math.nan)]}, {"q": {"a": 1}})
    assert caught.value.code == "metric.not-finite"


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingExtraError, match=r"stillroom\[evaluate\]"):
        retrieval_metrics({}, {})


def test_every_measure_by_hand():
    run = {"q": [("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0)]}
    qrels = {"q": {"b": 1, "d": 1, "z": 1}, "silent": {"a": 1}}
    found = score_run(
        run,
        qrels,
        ("precision@2", "success@1", "success@2", "map", "map@2", "mrr", "mrr@1", "recall@4"),
    )
    assert {name: values["q"] for name, values in found.items()} == pytest.approx(
        {
            "precision@2": 1 / 2,
            "success@1": 0,
            "success@2": 1,
            "map": (1 / 2 + 2 / 4) / 3,
            "map@2": 1 / 2 / 3,
            "mrr": 1 / 2,
            "mrr@1": 0,
            "recall@4": 2 / 3,
        }
    )
    assert all(values["silent"] == 0 for values in found.values())


@pytest.mark.parametrize(
    "name",
    [
        *("recall", "ndcg@0", "ndcg@ten", "f1@3", "", "@5", "mrr@-1"),
        *(f"ndcg@{2**63}", "ndcg@" + "9" * 5000, "P_" + "9" * 5000),
    ],
)
def test_an_unknown_measure_is_refused(name):
    with pytest.raises(DataError) as caught:
        score_run({}, {}, (name,))
    assert caught.value.code == "metric.unknown-measure"
