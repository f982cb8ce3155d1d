"""Our measures against trec_eval's own code on a thousand random runs, with its options."""

import json
import random
import statistics

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import DataError
from stillroom.evaluate.metrics.retrieval import score_run
from stillroom.evaluate.qa.collections import read_qrels, read_run, write_run

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
    "ndcg": ("ndcg", "ndcg"),
    "rprec": ("Rprec", "Rprec"),
    "bpref": ("bpref", "bpref"),
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
    # pytrec_eval 0.5.11 writes past its tables for grades below -1, and may end the process; its
    # ndcg does not end where a query has negative grades alone.
    found = {}
    for least, asked in ((0, {name for name, _ in THEIRS.values()} - {"bpref"}), (-1, {"bpref"})):
        judged = {q: {n: max(g, least) for n, g in grades.items()} for q, grades in qrels.items()}
        evaluator = pytrec_eval.RelevanceEvaluator(judged, asked, relevance_level=level)
        scored = evaluator.evaluate({query: run[query] for query in run if run[query]})
        for query, values in scored.items():
            found.setdefault(query, {}).update(values)
    return found


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


def test_runs_are_scored_and_compared_by_the_command_line(tmp_path):
    (tmp_path / "qrels.txt").write_text("1 0 a 2\n1 0 b 0\n2 0 a 1\n3 0 c 1\n")
    write_run(tmp_path / "one.trec", {"1": [("a", 2.0), ("b", 1.0)], "2": [("b", 1.0)]})
    write_run(tmp_path / "two.trec", {"1": [("b", 2.0), ("a", 1.0)], "2": [("a", 1.0)]})

    def score(*words):
        names = [str(tmp_path / name) for name in ("qrels.txt", "one.trec", "two.trec")]
        command = ["rag", "score", *names, "--measure", "mrr", *words]
        done = CliRunner().invoke(stillroom, command)
        assert done.exit_code == 0, done.output
        return done.output

    told = json.loads(score("--json", "--per-query"))
    one, two = "one", "two"
    assert told["means"][one]["mrr"]["value"] == pytest.approx(1 / 3)
    assert told["queries"][two]["mrr"] == {"1": 0.5, "2": 1.0, "3": 0.0}
    assert told["differences"][two]["mrr"]["value"] == pytest.approx(0.5 / 3)
    answered = json.loads(score("--json", "--answered-only"))
    assert answered["means"][two]["mrr"]["value"] == 0.75
    strict = json.loads(score("--json", "--relevance-level", "2"))
    assert strict["means"][two]["mrr"]["value"] == pytest.approx(0.5 / 3)
    first = json.loads(score("--json", "--depth", "1"))
    assert first["means"][two]["mrr"]["value"] == pytest.approx(1 / 3)
    assert "minus the first" in score("--per-query")


@pytest.mark.parametrize(
    ("rows", "names", "told"),
    [
        ("x1 Q0 a 1 2.0 other\n", ["run"], "has none of the 1 judged queries"),
        ("", ["run"], "has none of the 1 judged queries"),
        ("1 Q0 a 1 2.0 one\n", ["run", "run"], "given twice"),
    ],
)
def test_a_run_of_other_queries_and_one_given_twice_are_refused(tmp_path, rows, names, told):
    (tmp_path / "qrels").write_text("1 0 a 2\n")
    (tmp_path / "run").write_text(rows)
    paths = [str(tmp_path / name) for name in ("qrels", *names)]
    done = CliRunner().invoke(stillroom, ["rag", "score", *paths])
    assert done.exit_code
    assert told in f"{done.output}{done.exception}"


def test_an_id_that_comes_twice_is_refused_by_name():
    with pytest.raises(DataError, match="'d' was retrieved twice for query 'q'") as caught:
        score_run({"q": [("d", 1.0), ("d", 0.5)]}, {"q": {"d": 1}}, ["map"])
    assert caught.value.code == "metric.duplicate-hit"


def test_the_mean_is_over_every_judged_query():
    run, qrels = {"a": {"x": 1.0}}, {"a": {"x": 1}, "b": {"y": 1}}
    values = score_run(run, qrels, ["mrr"])["mrr"]
    assert statistics.mean(values.values()) == 0.5


# Topic 302 of TREC-6's run that trec_eval's own test holds: at which ranks of 500 its 77 relevant
# documents stand, and what its file of expected output prints for it.
FOUND = (
    *(1, 2, 4, 5, 6, 8, 9, *range(11, 20), 21, 22, 24, 27, 28, 30, 31, 34, 36, 37, 39, 42, 43, 44),
    *(47, 48, 49, 50, 51, 53, 56, 58, 72, 79, 82, 84, 116, 154, 289, 301, 331, 353, 394, 458),
)
PRINTED = {
    "P_5": "0.8000",
    "P_20": "0.8000",
    "P_30": "0.7333",
    "recall_100": "0.5455",
    "recall_200": "0.5714",
    "recall_500": "0.6494",
    "Rprec": "0.5065",
    "recip_rank": "1.0000",
}


def test_a_topic_of_their_test_scores_as_their_expected_output(tmp_path):
    qrels, run = tmp_path / "qrels", tmp_path / "run"
    judged = [*(f"D{rank}" for rank in FOUND), *(f"never{at}" for at in range(77 - len(FOUND)))]
    rows = "".join(f"302 0 {name} {1 if at % 2 else '1.0'}\n" for at, name in enumerate(judged))
    qrels.write_text(f"# a comment\n{rows}302 0 D3 0\n")
    # Neither the order of lines nor the column of ranks counts, only scores.
    rows = [
        f"302\tQ0\tD{rank}\t{rank % 7}\t  {4 - rank / 200:.6f}\tSTANDARD" for rank in range(1, 501)
    ]
    run.write_text("# theirs has comments, too\n" + "\n".join(sorted(rows)) + "\n")
    measures = [part for name in PRINTED for part in ("--measure", name)]
    done = CliRunner().invoke(stillroom, ["rag", "score", str(qrels), str(run), *measures])
    assert done.exit_code == 0, done.output
    assert "nan" not in done.output
    for name, value in PRINTED.items():
        line = next(one for one in done.output.splitlines() if f" {name} " in one)
        assert value in line.split()
