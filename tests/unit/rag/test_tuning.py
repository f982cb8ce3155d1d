import json
import random

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.flow import run_recipe
from stillroom.rag import ask
from stillroom.rag.evaluation.tuning import (
    cross_validate,
    list_fusion_settings,
    rank_names,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.fusion_tuning import FusionTuningRecipe
from stillroom.rag.maintenance.update import check_index
from stillroom.rag.retrieval.pipeline import parse_pipeline, retrieve
from stillroom.testing import scripted_model


def made_run(places):
    """Return a run in which each query's one relevant name stands at the given place."""
    run = {}
    for query, place in places.items():
        names = [f"other{at}" for at in range(12)]
        names.insert(place - 1, "right")
        run[query] = [(name, float(len(names) - at)) for at, name in enumerate(names)]
    return run


QUERIES = [f"q{at}" for at in range(40)]
QRELS = {query: {"right": 1} for query in QUERIES}


def test_a_better_setting_is_chosen_and_measured_on_held_out_queries():
    runs = {
        "hybrid": made_run(dict.fromkeys(QUERIES, 3)),
        "better": made_run(dict.fromkeys(QUERIES, 1)),
        "worse": made_run(dict.fromkeys(QUERIES, 9)),
    }
    tuned = cross_validate(runs, QRELS)
    assert (tuned.chosen, tuned.best, tuned.is_gain) == ("better", "better", True)
    assert tuned.held_out.value == pytest.approx(1.0)
    assert tuned.difference.value == pytest.approx(0.5)  # 1 - 1 / log2(3 + 1)
    assert tuned.by_fold == ("better",) * 5


def test_noise_is_no_gain_and_its_best_value_is_too_high():
    rng = random.Random(1)
    runs = {
        way: made_run({query: rng.randint(1, 10) for query in QUERIES})
        for way in ["hybrid", *(f"noise{at}" for at in range(30))]
    }
    tuned = cross_validate(runs, QRELS)
    assert not tuned.is_gain
    assert tuned.chosen == "hybrid"
    assert tuned.seen.value > tuned.held_out.value


def test_the_held_out_value_never_comes_from_a_query_that_chose():
    """A setting that is good on one query only is never credited with that query."""
    lucky = dict.fromkeys(QUERIES, 4) | {"q0": 1}
    runs = {"hybrid": made_run(dict.fromkeys(QUERIES, 4)), "lucky": made_run(lucky)}
    tuned = cross_validate(runs, QRELS)
    assert tuned.best == "lucky"
    assert tuned.difference.value == pytest.approx(0.0)
    assert tuned.chosen == "hybrid"


def test_too_few_queries_are_refused():
    few = {query: QRELS[query] for query in QUERIES[:9]}
    with pytest.raises(DataError) as caught:
        cross_validate({"hybrid": made_run(dict.fromkeys(few, 1))}, few)
    assert caught.value.code == "rag.too-few-queries"


def test_every_setting_that_is_tried_can_be_used():
    settings = list_fusion_settings()
    assert len(set(settings)) == len(settings) == 50
    assert settings[:2] == ["convex", "hybrid"]
    for way in settings:
        parse_pipeline(way)


def test_a_name_stands_where_its_best_row_does():
    names = ["a", "b", "a", "c"]
    ranked = rank_names([(1, 9.0), (2, 8.0), (0, 7.0), (3, 6.0)], names, 2)
    assert ranked == [("b", 2.0), ("a", 1.0)]


def test_a_way_that_fuses_nothing_is_refused(built, tmp_path):
    for way in ("keyword", "hybrid+proximity"):
        files = {"queries": str(tmp_path / "q"), "qrels": str(tmp_path / "r")}
        recipe = FusionTuningRecipe(index=str(built), **files, pipelines=[way])
        with pytest.raises(RecipeError) as caught:
            run_recipe(recipe, tmp_path / "out")
        assert caught.value.code == "rag.not-a-fusion"


def test_by_the_command_line(built, tmp_path):
    texts = ["how long does a cat sleep", "capital of France", "who barks", "CVE-2024-1"]
    paths = ["animals/cats.md", "places/paris.txt", "animals/dogs.md", "code/python.md"]
    (tmp_path / "q.tsv").write_text("".join(f"{at}\t{text}\n" for at, text in enumerate(texts)))
    (tmp_path / "r.txt").write_text("".join(f"{at} 0 {path} 1\n" for at, path in enumerate(paths)))
    words = ["rag", "tune", str(built), "--queries", str(tmp_path / "q.tsv"), "--folds", "2"]
    words += ["--qrels", str(tmp_path / "r.txt"), "--out", str(tmp_path / "out"), "--quiet"]
    done = CliRunner().invoke(stillroom, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Nothing is gained" in done.output
    assert "held-out less default" in done.output
    told = json.loads((tmp_path / "out" / "output" / "retriever.json").read_text())
    assert told["pipeline"] == "convex"
    assert parse_pipeline(told["pipeline"]).retriever.model_dump() == told["retriever"]


def test_what_was_chosen_is_kept_by_the_index_and_used(build, tmp_path):
    build()
    texts = ["how long does a cat sleep", "capital of France", "who barks", "CVE-2024-1"]
    paths = ["animals/cats.md", "places/paris.txt", "animals/dogs.md", "code/python.md"]
    (tmp_path / "q.tsv").write_text("".join(f"{at}\t{text}\n" for at, text in enumerate(texts)))
    (tmp_path / "r.txt").write_text("".join(f"{at} 0 {path} 1\n" for at, path in enumerate(paths)))
    index = tmp_path / "index"
    words = ["rag", "tune", str(index), "--queries", str(tmp_path / "q.tsv"), "--folds", "2"]
    words += ["--qrels", str(tmp_path / "r.txt"), "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--write", "--overwrite"]

    def found(retriever=None):
        with Index.open(index) as opened:
            hits = retrieve(opened, "a cat and a dog", 6, retriever=retriever)
            return [(hit.passage.id, hit.score) for hit in hits]

    before = found()
    assert before == found("convex")
    way = "convex:alpha=0.9,normalization=zscore"
    done = CliRunner().invoke(stillroom, [*words, "--pipeline", way], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    chosen = parse_pipeline(way).retriever
    assert found() == found(chosen) != before
    assert json.loads((index / "artifact.json").read_text())["details"]["retriever"] == way
    with Index.open(index) as opened:
        model = scripted_model(lambda prompt: "It sleeps [1].")
        answer = ask(opened, model, "a cat and a dog", k=6)
        assert [hit.passage.id for hit in answer.hits] == [name for name, _ in found(chosen)]
    assert check_index(index) == []
    assert CliRunner().invoke(stillroom, ["verify", str(index)]).exit_code == 0
    CliRunner().invoke(stillroom, words, catch_exceptions=False)  # nothing is gained by any
    assert found() == before
