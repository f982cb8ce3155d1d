import json
import sqlite3
import threading

import numpy as np
import pytest

from stillroom.errors import DataError, IntegrityError
from stillroom.models import open_embedder
from stillroom.rag.generation.answer import ask
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import Query
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.records import Document
from stillroom.testing import scripted_model

RETRIEVERS = ("keyword", "dense", "hybrid")


def top(hits):
    return hits[0].passage.location.path if hits else ""


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_the_best_hit_is_the_passage_that_says_it(index, retriever):
    assert top(retrieve(index, "capital of France", 3, retriever=retriever)) == "places/paris.txt"
    assert top(retrieve(index, "which animal barks", 3, retriever=retriever)) == "animals/dogs.md"


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("C++", "code/cpp.md"),
        ("foo_bar", "code/cpp.md"),
        ("3.11.7", "code/python.md"),
        ("cve-2024-1", "code/python.md"),
        ("日本の首都", "places/tokyo.txt"),
        ("guarding houses", "animals/dogs.md"),
    ],
)
def test_keywords_find_identifiers_numbers_and_other_forms(index, query, path):
    assert top(retrieve(index, query, 1, retriever="keyword")) == path


def test_the_languages_are_those_of_all_documents(index):
    found = index.languages
    assert found == index.restrict("path ~ code/*").languages
    assert found.count("en") > 1
    assert len(found) <= len({index.passage_at(row).document_id for row in range(len(index))})


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_ranks_count_from_one_and_scores_fall(index, retriever):
    hits = retrieve(index, "a cat and a dog", 4, retriever=retriever)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("retriever", RETRIEVERS)
@pytest.mark.parametrize(
    "query",
    [
        "C++ (foo",
        '"x',
        "a AND",
        "foo-bar",
        "col:val",
        "NEAR(a b)",
        "*",
        "'; DROP TABLE terms; --",
        "🙂🙂🙂",
        "\x00",
        "\ud800 broken",
        "the of and",
        "x" * 30_000,
    ],
)
def test_any_text_is_words_and_never_syntax(index, retriever, query):
    assert len(retrieve(index, query, 3, retriever=retriever)) <= 3


@pytest.mark.parametrize("query", ["", "  \n\t"])
def test_a_blank_query_finds_nothing(index, query):
    assert retrieve(index, query) == []


def test_only_symbols_find_no_keyword(index):
    assert retrieve(index, "🙂 !!! ()", retriever="keyword") == []


def test_a_query_of_a_megabyte_is_refused(index):
    with pytest.raises(DataError, match=r"the query has 1000000 characters") as caught:
        retrieve(index, "x" * 1_000_000)
    assert caught.value.code == "rag.query-too-long"


@pytest.mark.parametrize("k", [0, -1])
def test_a_depth_below_one_is_refused(index, k):
    with pytest.raises(DataError) as caught:
        retrieve(index, "cat", k)
    assert caught.value.code == "rag.bad-depth"


def test_more_hits_than_passages_give_each_once(index):
    hits = retrieve(index, "cat dog Paris Python C++", 1000)
    ids = [hit.passage.id for hit in hits]
    assert len(ids) == len(set(ids)) <= len(index)


def test_a_passage_is_found_by_its_id(index):
    hit = retrieve(index, "Paris", 1)[0]
    assert index.passage(hit.passage.id) == hit.passage
    with pytest.raises(DataError) as caught:
        index.passage("pas-unknown")
    assert caught.value.code == "rag.no-such-passage"


def test_the_dense_scan_is_exact(index):
    vector = index.embedder.embed(["who guards at night"], kind="query")[0]
    scores = index.vectors_of(range(len(index))) @ vector
    best = [int(row) for row in np.argsort(-scores, kind="stable") if scores[row] > 0]
    found = index.search_dense(Query("who guards at night"), len(index))
    assert [row for row, _ in found] == best


def test_several_threads_search_at_once(index):
    queries = ["capital of France", "barks at strangers", "foo_bar", "purr", "CVE-2024-1"] * 8
    alone = [[hit.passage.id for hit in retrieve(index, query, 3)] for query in queries]
    found = {}

    def search(number):
        found[number] = [hit.passage.id for hit in retrieve(index, queries[number], 3)]

    threads = [threading.Thread(target=search, args=(at,)) for at in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(queries))] == alone


def test_an_unfinished_index_is_refused(build, tmp_path):
    build()
    (tmp_path / "index/output/ledger.sqlite").unlink()
    with pytest.raises(IntegrityError) as caught:
        Index.open(tmp_path / "index")
    assert caught.value.code == "rag.index-unfinished"
    assert "--resume" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["ledger.sqlite", "segments/000001/vectors.npy", "segments/000001/postings.safetensors"],
)
def test_a_changed_byte_is_noticed(build, tmp_path, name):
    build()
    path = tmp_path / "index/output" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        Index.open(tmp_path / "index")
    assert caught.value.code == "rag.index-damaged"
    assert path.name in str(caught.value)


@pytest.mark.parametrize("name", ["vectors.npy", "postings.safetensors"])
def test_a_shortened_file_is_noticed_without_digests(build, tmp_path, name):
    build()
    path = tmp_path / "index/output/segments/000001" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="bytes instead of"):
        Index.open(tmp_path / "index", verify=False)


def test_a_ledger_that_is_no_database_is_refused(build, tmp_path):
    build()
    path = tmp_path / "index/output/ledger.sqlite"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(IntegrityError, match=r"ledger.sqlite: file is not a database"):
        Index.open(tmp_path / "index", verify=False)


def test_a_passage_whose_text_was_changed_is_not_shown(build, tmp_path):
    build()
    connection = sqlite3.connect(tmp_path / "index/output/ledger.sqlite")
    connection.execute("UPDATE passages SET body = CAST(replace(body, 'sleeps', 'dances') AS BLOB)")
    connection.commit()
    connection.close()
    with (
        Index.open(tmp_path / "index", verify=False) as index,
        pytest.raises(IntegrityError, match="has another text") as caught,
    ):
        retrieve(index, "purr")
    assert caught.value.code == "rag.index-damaged"


@pytest.mark.parametrize("version", [2, 99])
def test_an_index_of_another_version_is_not_called_damaged(build, tmp_path, version):
    build()
    connection = sqlite3.connect(tmp_path / "index/output/ledger.sqlite")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(IntegrityError, match=f"has format {version}, and this version") as caught:
        Index.open(tmp_path / "index")
    assert caught.value.code == "rag.other-format"


def test_an_index_of_the_older_format_says_to_build_it_again(tmp_path):
    for name in ("index.json", "passages.jsonl", "documents.jsonl", "vectors.npy"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(IntegrityError, match="an index of an older format") as caught:
        Index.open(tmp_path)
    assert "--overwrite" in str(caught.value)


def test_another_embedder_is_refused_naming_both(build, tmp_path):
    build()
    other = open_embedder("static", dimensions=256)
    with pytest.raises(IntegrityError) as caught:
        Index.open(tmp_path / "index", embedder=other)
    assert caught.value.code == "rag.embedder-mismatch"
    assert "the same prompts for queries and passages" in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert open_embedder("static").fingerprint in str(caught.value)


def test_another_text_analysis_is_refused(build, tmp_path, monkeypatch):
    build()
    monkeypatch.setattr("stillroom.rag.analysis.analyzer.ANALYZER_VERSION", 999)
    with pytest.raises(IntegrityError) as caught:
        Index.open(tmp_path / "index")
    assert caught.value.code == "rag.analyzer-mismatch"


def test_the_files_are_never_written_by_reading(index):
    def look():
        return {path: path.stat().st_mtime_ns for path in index.folder.rglob("*")}

    before = look()
    retrieve(index, "cat")
    assert look() == before


def test_the_newest_passages_can_be_read_with_sqlite_alone(index):
    connection = sqlite3.connect(index.folder / "ledger.sqlite")
    rows = connection.execute("SELECT id, path, body FROM current_passages").fetchall()
    connection.close()
    assert [row[0] for row in rows] == [index.passage_at(row).id for row in range(len(index))]
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert [json.loads(row[2])["id"] for row in rows] == [row[0] for row in rows]


def test_an_answer_decodes_each_document_once(index, monkeypatch):
    ids = [index.passage_at(row).document_id for row in range(len(index))]
    read = []
    from_json = Document.from_json
    monkeypatch.setattr(Document, "from_json", lambda data: read.append(0) or from_json(data))
    kept = index.keep_documents()
    assert kept.document(ids[0]) is kept.document(ids[0])
    assert [kept.document(name).id for name in ids * 2] == ids * 2
    assert len(read) == len(set(ids))
    assert index.document(ids[0]) is not kept.document(ids[0])
    with pytest.raises(DataError, match="no document"):
        kept.restrict("path = nothing").document(ids[0])


def test_a_question_decodes_each_document_once(index, monkeypatch):
    read = []
    from_json = Document.from_json
    monkeypatch.setattr(
        Document, "from_json", lambda data: read.append(data["id"]) or from_json(data)
    )
    reader = {"name": "quote", "reader": "builtin:overlap", "min_probability": 0.0}
    assert ask(index, scripted_model({}), "what do cats hunt?", answering=reader).details["quotes"]
    assert read
    assert len(read) == len(set(read))
