import json
import re
import time

import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from tests.unit.rag.jobs import run_report

from stillroom.cli import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.qa.collections import CorpusRow, read_run
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.models.embedders.static import _StaticEmbedder
from stillroom.rag.evaluation import retrieval_job
from stillroom.rag.evaluation.retrieval import (
    QueryResult,
    RunResults,
    choose_unit,
    get_corpus_id,
    list_missed_documents,
    search_query,
    unpack_corpus,
)
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.jobs.retrieval_evaluation import RetrievalEvaluationRecipe
from stillroom.rag.rerankers.mmr import Mmr
from stillroom.rag.retrieval.pipeline import parse_pipeline
from stillroom.text.reader import scan_folder

QUERIES = {
    "1": "how long does a cat sleep",
    "2": "capital of France",
    "3": "who barks at strangers",
    "4": "quantum chromodynamics",
}
QRELS = """1 0 animals/cats.md 1
2 0 places/paris.txt 1
3 0 animals/dogs.md 1
3 0 animals/wolves.md 1
4 0 code/cpp.md 1
5 0 code/cpp.md 0
"""


@pytest.fixture
def judged(tmp_path):
    lines = [json.dumps({"_id": name, "text": text}) for name, text in QUERIES.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "qrels.txt").write_text(QRELS)
    return tmp_path


def make_recipe(judged, built, **changes):
    fields = {
        "index": str(built),
        "queries": str(judged / "queries.jsonl"),
        "qrels": str(judged / "qrels.txt"),
        "pipelines": ["keyword", "dense", "hybrid+mmr"],
        "measures": ["ndcg@10", "recall@10"],
        "depth": 5,
        "k": 2,
    }
    return RetrievalEvaluationRecipe(**{**fields, **changes})


def test_the_report_holds_figures_differences_and_every_miss(judged, built, tmp_path):
    artifact, report = run_report(make_recipe(judged, built), tmp_path / "out")
    assert artifact.kind == "report"
    assert artifact.details["unit"] == "path"
    assert report.metrics["keyword/ndcg@10"].n == 4  # query 5 has nothing relevant
    assert report.metrics["keyword/recall@10"].value == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert [section.title for section in report.sections] == [
        "Pipelines",
        "Where the time goes",
        "Against keyword",
        "Where it is lost",
    ]
    lines = (tmp_path / "out/output/queries.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0]["query"] == "4"
    missed = {row["query"]: row["missed"] for row in rows}
    assert missed["3"] == [{"id": "animals/wolves.md", "rank": None, "stage": "index"}]
    assert missed["4"][0]["stage"] == "retrieve"
    runs = sorted((tmp_path / "out/output/runs").iterdir())
    assert [path.name for path in runs] == [
        "0-keyword.trec",
        "1-dense.trec",
        "2-hybrid-mmr.trec",
    ]
    assert read_run(runs[0])["1"][0][0] == "animals/cats.md"


def test_the_time_of_the_first_querys_embedding_counts(judged, built, tmp_path, monkeypatch):
    (judged / "qrels.txt").write_text("1 0 animals/cats.md 1\n")
    embed = _StaticEmbedder.embed

    def embed_slowly(*given, **options):
        time.sleep(0.2)
        return embed(*given, **options)

    monkeypatch.setattr(_StaticEmbedder, "embed", embed_slowly)
    _, report = run_report(make_recipe(judged, built, pipelines=["dense"]), tmp_path / "out")
    told = re.search(r"embedding, which took ([\d.]+) ms", report.sections[0].text)
    assert told is not None
    assert float(told[1]) >= 200


def test_misses_name_the_stage_that_lost_them():
    one = QueryResult(tuple("abcd"), tuple("dcba"), 0.0, 0.0)
    qrels = {"q": {"d": 1, "c": 1, "b": 1, "y": 1, "z": 1, "a": 0}}
    misses = list_missed_documents(RunResults("way", {"q": one}), qrels, set("abcdy"), k=2)["q"]
    assert [(miss.name, miss.rank, miss.stage) for miss in misses] == [
        ("c", 3, "rerank"),
        ("d", 4, "rerank"),
        ("y", None, "retrieve"),
        ("z", None, "index"),
    ]
    low = list_missed_documents(RunResults("way", {"q": one}), {"q": {"b": 1}}, set("abcd"), k=1)[
        "q"
    ]
    assert [(miss.rank, miss.stage) for miss in low] == [(2, "rank")]


def test_a_documents_best_passage_stands_for_it(index):
    found = search_query(index, parse_pipeline("keyword"), "cats dogs", unit="path", depth=5)
    assert len(found.ranked) == len(set(found.ranked))
    assert set(found.ranked) == {"animals/cats.md", "animals/dogs.md"}
    assert found.seconds > 0


def test_judgements_of_another_folder_are_refused(index):
    passages = [index.passage_at(row) for row in range(len(index))]
    with pytest.raises(DataError, match="no judged id") as caught:
        choose_unit(passages, {"q": {"elsewhere": 1}})
    assert caught.value.code == "rag.nothing-judged"
    unit, names = choose_unit(passages, {"q": {passages[0].id: 1}})
    assert unit == "passage"
    assert len(names) == len(index)


def test_ways_are_written_in_a_line():
    way = parse_pipeline("expand > hybrid:keyword_weight=2,depth=50 + mmr")
    assert (way.retriever.keyword_weight, way.retriever.depth) == (2.0, 50)
    assert way.reranker.method_name() == "mmr"
    assert way.transform.method_name() == "expand"
    with pytest.raises(RecipeError, match="hybird"):
        parse_pipeline("hybird")
    with pytest.raises(RecipeError, match="KEY=VALUE"):
        parse_pipeline("hybrid:fast")


def test_what_cannot_be_evaluated_is_refused_before_a_job_starts(judged, built, tmp_path):
    with pytest.raises(ValidationError, match="listed twice: keyword"):
        make_recipe(judged, built, pipelines=["keyword", "keyword"])
    with pytest.raises(DataError) as caught:
        run_report(make_recipe(judged, built, measures=["recall"]), tmp_path / "out")
    assert caught.value.code == "metric.unknown-measure"
    (judged / "qrels.txt").write_text("9 0 code/cpp.md 1\n")
    with pytest.raises(DataError, match="1 judged queries have no text"):
        run_report(make_recipe(judged, built), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corpus_becomes_documents_and_ids_come_back(tmp_path):
    ids = ["a", "a/b", "../up", "x#y?z=1", "with.dots.txt", "é"]
    rows = [CorpusRow(name, "Title" if name == "a" else "", f"Text of {name}.") for name in ids]
    assert unpack_corpus(rows, tmp_path / "documents") == len(ids)
    files = scan_folder(tmp_path / "documents").files
    paths = {file.relative_to(tmp_path / "documents").as_posix(): file for file in files}
    assert {get_corpus_id(path) for path in paths} == set(ids)
    assert paths["0000/a.txt"].read_text() == "Title\n\nText of a."
    with pytest.raises(DataError) as caught:
        unpack_corpus(rows, tmp_path / "documents")
    assert caught.value.code == "data.exists"
    with pytest.raises(DataError, match="cannot be a file name"):
        unpack_corpus([CorpusRow("x" * 300, "", "")], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_from_a_corpus_to_a_report_by_the_command_line(tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    texts = {"d/1": "The cat sleeps.", "d/2": "The dog barks.", "d/3": "Paris is a city."}
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": k, "title": "", "text": v}) + "\n" for k, v in texts.items())
    )
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which city?"}\n')
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td/3\t1\n")

    def run(*words):
        done = CliRunner().invoke(stillroom, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    run("rag", "unpack", folder / "corpus.jsonl", "--out", tmp_path / "docs")
    run("rag", "index", tmp_path / "docs", "--out", tmp_path / "index", "embedder=builtin:static")
    source = str(folder / "corpus.jsonl")
    assert source in run("show", tmp_path / "docs", "--lineage")
    assert source in run("show", tmp_path / "index", "--lineage")
    assert "changed since" not in run("show", tmp_path / "index", "--lineage")
    for path in ("docs", "index"):
        assert "all digests match" in run("verify", tmp_path / path)
    found = run("rag", "search", tmp_path / "index", "which city?", "--pipeline", "keyword+mmr")
    assert found.splitlines()[0].startswith("1.")
    assert "d%2F3.txt" in found.splitlines()[0]
    out = tmp_path / "report"
    judged = [f"queries={folder / 'queries.jsonl'}", f"qrels={folder / 'qrels/test.tsv'}"]
    kind = "rag.retrieval_evaluation"
    said = run("run", kind, f"index={tmp_path / 'index'}", *judged, "--out", out, "--quiet")
    assert "judged by corpus" in said
    assert "hybrid" in said
    assert "1.0000" in said
    found = (tmp_path / "report/output/report.html").read_text()
    assert "Where it is lost" in found


def test_a_query_that_is_a_row_of_the_corpus_does_not_find_itself(tmp_path):
    rows = [
        CorpusRow("for", "", "Cities should be free of cars, since cars make noise in cities."),
        CorpusRow("against", "", "Cities without cars would be dead, noise or not."),
        CorpusRow("other", "", "A cat sleeps sixteen hours a day."),
    ]
    unpack_corpus(rows, tmp_path / "docs")
    recipe = IndexRecipe(documents=str(tmp_path / "docs"), embedder="static")
    run(recipe, Job.start(tmp_path / "index", "recipe\n"), embedder=open_embedder("static"))
    queries = {"for": rows[0].text, "other": "which animal sleeps a day"}
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in queries.items())
    )
    (tmp_path / "qrels.tsv").write_text("for\t0\tagainst\t1\nother\t0\tother\t1\n")
    recipe = RetrievalEvaluationRecipe(
        index=str(tmp_path / "index"),
        queries=str(tmp_path / "queries.jsonl"),
        qrels=str(tmp_path / "qrels.tsv"),
        pipelines=["keyword", "dense"],
        measures=["mrr@10"],
    )
    _, report = run_report(recipe, tmp_path / "out")
    assert report.metrics["keyword/mrr@10"].value == 1.0  # a judged row stays a hit
    assert report.metrics["dense/mrr@10"].value == 1.0
    assert "1 of them are rows of the corpus, and no hits of their own." in report.summary
    found = read_run(next((tmp_path / "out/output/runs").glob("0-*")))
    assert "for" not in dict(found["for"])


def test_a_models_unreadable_answers_are_counted(judged, built, tmp_path):
    (tmp_path / "script.json").write_text(json.dumps({"*": "no JSON"}))
    asked = make_recipe(
        judged,
        built,
        pipelines=["keyword", "multi_query>keyword", "keyword+listwise"],
        model=f"scripted:{tmp_path / 'script.json'}",
    )
    _, report = run_report(asked, tmp_path / "out")
    told = next(one for one in report.sections if one.title == "Done otherwise than asked")
    counts = {row[0]: row[2] for row in told.table.rows}
    assert counts["multi_query>keyword"] == "4"
    assert report.metrics["multi_query>keyword/ndcg@10"].value == pytest.approx(
        report.metrics["keyword/ndcg@10"].value
    )


def test_a_way_that_asks_a_model_needs_one(judged, built, tmp_path):
    with pytest.raises(DataError) as caught:
        run_report(make_recipe(judged, built, pipelines=["hyde>keyword"]), tmp_path / "out")
    assert caught.value.code == "rag.no-model"


def test_what_other_weights_rank_is_searched_again_by_a_resumed_job(
    judged, built, tmp_path, monkeypatch
):
    recipe = make_recipe(judged, built, pipelines=["keyword", "keyword+mmr"])
    searched = []

    def note(index, pipeline, text, **settings):
        if "leave_out" in settings:  # else it warms up
            searched.append(pipeline.name)
        return search_query(index, pipeline, text, **settings)

    def stop(path, run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_job, "write_run", stop)
        with pytest.raises(KeyboardInterrupt):
            run_report(recipe, tmp_path / "out")
    monkeypatch.setattr(retrieval_job, "search_query", note)
    monkeypatch.setattr(Mmr, "moment", "other weights")
    run_report(recipe, tmp_path / "out", resume=True)
    assert searched == ["keyword+mmr"] * len(QUERIES)
