import json
import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.index.ann_recall import check_recall, describe_recall, measure_recall
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.maintenance.update import update_index
from stillroom.rag.retrieval.pipeline import retrieve

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnprst"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("many") / "documents"
    place.mkdir()
    rng = np.random.default_rng(0)
    for at in range(20):
        lines = [" ".join(rng.choice(WORDS, 12)) for _ in range(30)]
        (place / f"{at:02d}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return place


def build(folder, out, **settings):
    told = {"documents": str(folder), "embedder": "static", **settings}
    told["chunker"] = {"name": "recursive", "size": 16}
    text = json.dumps({"version": 1, "kind": "rag.index", **told})
    job = Job.start(out, text, overwrite=True)
    try:
        return run(IndexRecipe(**told), job, embedder=open_embedder("static"))
    finally:
        job.close()


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("approximate") / "index"
    return out, build(folder, out, dense={"search": "approximate"})


def ask(index, query, **dense):
    hits = retrieve(index, query, 10, retriever={"name": "dense", **dense})
    return [(hit.passage.id, hit.score) for hit in hits]


def segment_files(out):
    return {path.name for path in (out / "output" / "segments").rglob("*") if path.is_file()}


def test_recall_is_measured_when_an_index_is_built(built):
    out, artifact = built
    told = artifact.details["approximate"]
    assert told["recall"] >= 0.95
    assert (told["k"], told["queries"]) == (10, 64)
    assert told["passages"] >= 600
    assert "sketches.safetensors" in segment_files(out)


def test_approximate_search_finds_what_it_says_with_the_scores_of_exact_search(built):
    shares = []
    with Index.open(built[0]) as index:
        for query in (" ".join(WORDS[at : at + 4]) for at in range(0, 200, 10)):
            exact, near = ask(index, query, search="exact"), ask(index, query)
            assert all(dict(exact).get(name, score) == score for name, score in near)
            shares.append(np.mean([score >= exact[-1][1] for _, score in near]))
    assert np.mean(shares) >= 0.9  # 20 questions of another kind than those measured with


def test_a_narrow_filter_is_searched_exactly(built):
    with Index.open(built[0]) as index:
        narrow = index.restrict("path = '07.txt'")
        for query in (" ".join(WORDS[at : at + 4]) for at in range(0, 200, 20)):
            assert ask(narrow, query) == ask(narrow, query, search="exact")


def test_auto_becomes_approximate_by_size(folder, tmp_path):
    small = build(folder, tmp_path / "small")
    large = build(folder, tmp_path / "large", dense={"search": "auto", "from_passages": 300})
    assert "approximate" not in small.details
    assert "sketches.safetensors" not in segment_files(tmp_path / "small")
    assert "approximate" in large.details
    assert measure_recall(tmp_path / "small") is None
    with Index.open(tmp_path / "small") as index:  # made in memory where a question asks for it
        assert ask(index, "bab beb", search="approximate")


def test_a_recall_that_nothing_reaches_is_exact_search(folder, tmp_path):
    told = build(folder, tmp_path / "index", dense={"search": "approximate", "least_recall": 1.0})
    with Index.open(tmp_path / "index") as index:
        if told.details["approximate"]["oversampling"] is None:
            assert ask(index, "bab bed") == ask(index, "bab bed", search="exact")
        else:
            assert told.details["approximate"]["recall"] == 1.0


def test_an_update_writes_sketches_and_verify_says_the_recall(folder, tmp_path):
    docs = tmp_path / "documents"
    docs.mkdir()
    for path in folder.iterdir():
        (docs / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "index"
    build(docs, out, dense={"search": "approximate"})
    (docs / "new.txt").write_text("zyzzyva " * 8, encoding="utf-8")
    update_index(out, embedder=open_embedder("static"))
    with Index.open(out) as index:
        assert retrieve(index, "zyzzyva", 1, retriever="dense")[0].passage.text.startswith("zyzz")
    said = CliRunner().invoke(stillroom, ["rag", "verify", str(out)])
    assert said.exit_code == 0, said.output
    assert "approximate search: recall@10" in said.output
    told, damages = check_recall(out)
    assert told["recall"] >= 0.95
    assert not damages


def test_what_readers_use_and_is_not_enough_is_found_and_mended(folder, tmp_path):
    out = tmp_path / "index"
    build(folder, out, dense={"search": "approximate", "least_recall": 0.99})
    with sqlite3.connect(out / "output" / "ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM settings WHERE name = 'measured approximate'")
    ledger.close()
    said = CliRunner().invoke(stillroom, ["rag", "verify", str(out)])
    assert said.exit_code != 0
    assert "never measured" in str(said.exception)
    mended = CliRunner().invoke(stillroom, ["rag", "verify", str(out), "--repair"])
    assert mended.exit_code == 0, mended.output
    assert check_recall(out)[1] == []


def test_the_line_says_what_was_found():
    recall = {"recall": 0.9312, "k": 10, "queries": 64, "oversampling": 4}
    said = describe_recall(recall)
    assert "recall@10 0.931 against exact search, scoring 4 rows per requested hit (64 " in said
    said = describe_recall(recall | {"oversampling": None})
    assert "recall@10 at most 0.931 against exact search, too low, so search is exact (64 " in said
