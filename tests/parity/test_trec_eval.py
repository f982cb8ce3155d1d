"""Our measures against trec_eval's own code on a thousand random runs, with its options."""

import random
import statistics

import pytest

from stillroom.errors import DataError
from stillroom.evaluate.collections import read_qrels, read_run, write_run
from stillroom.evaluate.retrieval import score_run

pytrec_eval = pytest.importorskip("pytrec_eval")

THEIRS = {
    "ndcg@10": ("ndcg_cut.10", "ndcg_cut_10"),
    "ndcg@3": ("ndcg_cut.3", "ndcg_cut_3"),
    "recall@5": ("recall.5", "recall_5"),
    "precision@10": ("P.10", "P_10"),
    "success@5": ("success.5", "success_5"),
    "map": ("map", "map"),
    "map@7": ("map_cut.7", "map_cut_7"),
    "mrr": ("recip_rank", "recip_rank"),
}
EXACT = [step / 8 for step in range(-16, 17)]  # single precision holds these, ties and all


def draw(rng):
    """Return a run and judgements of a few queries: ties, negatives, gaps, unjudged ids."""
    names = [f"d{at:02d}" for at in range(30)]
    queries = [f"q{at}" for at in range(rng.randint(1, 4))]
    grades = rng.choice([[0, 1], [-2, -1, 0, 1, 2, 3], [0], [-1, 1]])
    qrels = {
        query: {name: rng.choice(grades) for name in rng.sample(names, rng.randint(1, 12))}
        for query in queries
    }
    run = {
        query: {name: rng.choice(EXACT) for name in rng.sample(names, rng.randint(1, 30))}
        for query in [*queries, "nobody judged this"]
        if rng.random() > 0.15
    }
    return run, qrels


def theirs(run, qrels, level):
    # pytrec_eval 0.5.11 writes past its tables for grades below -1, and may end the process.
    qrels = {query: {n: max(g, -1) for n, g in grades.items()} for query, grades in qrels.items()}
    asked = {name for name, _ in THEIRS.values()}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, asked, relevance_level=level)
    return evaluator.evaluate({query: run[query] for query in run if run[query]})


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_runs_score_as_trec_eval_scores_them(seed):
    rng = random.Random(seed)
    for _ in range(100):
        run, qrels = draw(rng)
        level = rng.choice([1, 1, 1, 2])
        found = score_run(run, qrels, list(THEIRS), relevance_level=level)
        expected = theirs(run, qrels, level)
        for measure, (_, key) in THEIRS.items():
            assert list(found[measure]) == list(qrels)  # -c: what found nothing counts as 0
            for query in qrels:
                want = expected.get(query, {}).get(key, 0.0)
                assert found[measure][query] == pytest.approx(want, abs=1e-9), (measure, query)


@pytest.mark.parametrize("seed", range(5))
def test_a_depth_is_what_trec_eval_does_with_a_run_cut_there(seed):
    rng = random.Random(100 + seed)
    for _ in range(20):
        run, qrels = draw(rng)
        cut = {
            query: dict(sorted(ranking.items(), key=lambda one: (one[1], one[0]))[::-1][:6])
            for query, ranking in run.items()
        }
        found = score_run(run, qrels, ["map", "mrr", "ndcg@10"], depth=6)
        expected = theirs(cut, qrels, 1)
        for measure in found:
            for query in qrels:
                want = expected.get(query, {}).get(THEIRS[measure][1], 0.0)
                assert found[measure][query] == pytest.approx(want, abs=1e-9)


def test_reciprocal_rank_at_a_depth_is_that_of_the_whole_where_it_lies_within():
    run, qrels = draw(random.Random(7))
    for depth in (1, 3, 10):
        cut, whole = score_run(run, qrels, [f"mrr@{depth}", "mrr"]).values()
        for query, value in whole.items():
            assert cut[query] == (value if value and 1 / value <= depth else 0.0)


def test_scores_that_single_precision_would_tie_are_ordered():
    run, qrels = {"q": {"a": 1.0, "b": 1.0 + 1e-12}}, {"q": {"b": 1}}
    assert score_run(run, qrels, ["mrr"])["mrr"]["q"] == 1.0
    equal = {"q": {"a": 1.0, "b": 1.0}}
    assert score_run(equal, {"q": {"a": 1}}, ["mrr"])["mrr"]["q"] == 0.5  # later ids first


def test_run_files_keep_the_order_and_the_scores(tmp_path):
    for seed in range(20):
        run, qrels = draw(random.Random(seed))
        ranked = {query: list(ranking.items()) for query, ranking in run.items()}
        run_file, qrels_file = tmp_path / "run.trec", tmp_path / "qrels.txt"
        named = {query.replace(" ", "_"): ranking for query, ranking in ranked.items()}
        write_run(run_file, named)
        qrels_file.write_text(
            "# judged by hand\n"
            + "".join(
                f"{query} 0 {name} {grade}\n"
                for query, grades in qrels.items()
                for name, grade in grades.items()
            )
        )
        assert read_run(run_file) == named
        again = score_run(read_run(run_file), read_qrels(qrels_file), ["ndcg@10"])
        assert again == score_run(named, qrels, ["ndcg@10"])


def test_an_id_that_comes_twice_is_refused_by_name():
    with pytest.raises(DataError, match="'d' was retrieved twice for query 'q'") as caught:
        score_run({"q": [("d", 1.0), ("d", 0.5)]}, {"q": {"d": 1}}, ["map"])
    assert caught.value.code == "metric.duplicate-hit"


def test_the_mean_is_over_every_judged_query():
    run, qrels = {"a": {"x": 1.0}}, {"a": {"x": 1}, "b": {"y": 1}}
    values = score_run(run, qrels, ["mrr"])["mrr"]
    assert statistics.mean(values.values()) == 0.5
