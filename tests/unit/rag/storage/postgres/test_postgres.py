"""An index in a real PostgreSQL server: through the command line, killed, refused, approximate."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.postgres import serve

from stillroom.cli import stillroom
from stillroom.errors import DataError, IntegrityError, RecipeError, ResourceError
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import STORES, Query
from stillroom.rag.maintenance.update import check_index
from stillroom.rag.storage.postgres.connection import (
    build_term_key,
    sanitize_column_text,
    translate_parameters,
)
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import open_store, update_manifest
from stillroom.rag.types import DocumentMetadata
from stillroom.testing.store import WordDocument, WordEmbedder, describe_word_index

psycopg = pytest.importorskip("psycopg")
ROOT = Path(__file__).resolve().parents[3]
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnprst"]


@pytest.fixture(scope="module")
def server():
    with serve() as address:
        yield address


@pytest.fixture(autouse=True)
def address(server, monkeypatch):
    monkeypatch.setenv("STILLROOM_POSTGRES", server)
    return server


def call(*arguments):
    result = CliRunner().invoke(stillroom, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def make(folder, documents, **settings):
    with STORES.build("postgres").create(folder, describe_word_index(**settings)) as writer:
        puts = [(WordDocument(*one), DocumentMetadata()) for one in sorted(documents.items())]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=4)
        update_manifest(writer)
    return folder


def test_threads_that_have_ended_leave_no_connection(tmp_path, server):
    folder = make(tmp_path, {"a.md": "purr one", "b.md": "bark two"})

    def count_readers():
        with psycopg.connect(server) as connection:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'stillroom r%'"
            return connection.execute(sql).fetchone()[0]

    before = count_readers()
    with Index.open(folder, embedder=WordEmbedder()) as index:
        for _ in range(8):  # the server answers each request in a thread of its own
            thread = threading.Thread(target=index.passage_at, args=(0,))
            thread.start()
            thread.join()
        # One reads, one holds the snapshot; the server ends the others' sessions a moment later.
        deadline = time.monotonic() + 20
        while count_readers() - before > 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert count_readers() - before <= 2


@pytest.mark.parametrize(
    "open_index",
    [
        lambda folder: Index.open(folder, embedder=WordEmbedder()),
        lambda folder: open_store(folder).write(),
    ],
    ids=["reader", "writer"],
)
def test_what_is_closed_holds_nothing_any_more(tmp_path, server, open_index):
    folder = make(tmp_path, {"a.md": "purr one"})
    sql, held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", []
    with psycopg.connect(server, autocommit=True) as connection:
        for _ in range(20):
            open_index(folder).close()
            held.append(connection.execute(sql).fetchone()[0])
    assert set(held) == {0}


def test_a_writer_is_closed_whatever_its_server_says(tmp_path, server):
    writer = open_store(make(tmp_path, {"a.md": "purr one"})).write()
    with writer.connection.transaction():  # allows no rollback
        writer.close()
    assert writer.connection.closed


def end_readers(server):
    """End the sessions of all readers, as a restart of the server does."""
    with psycopg.connect(server) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE application_name LIKE 'stillroom r%'"
        )


def copy_around(writer, act):
    """Call a function in the middle of a COPY."""
    with writer.connection.cursor() as cursor, cursor.copy("COPY batches FROM STDIN") as copy:
        copy.write("1\t")
        act()
        copy.write("2")


def test_a_writer_that_a_failure_closes_within_a_copy_does_not_hang(tmp_path):
    folder = make(tmp_path, {"a.md": "purr one"})
    writer = open_store(folder).write()
    closing = threading.Thread(target=writer.close, daemon=True)

    def close():
        closing.start()
        closing.join(10)

    with pytest.raises(psycopg.OperationalError, match="closed"):
        copy_around(writer, close)
    assert not closing.is_alive()
    open_store(folder).write().close()


def test_an_index_follows_again_after_the_server_was_restarted(tmp_path, server):
    folder = make(tmp_path, {"a.md": "purr one"})
    with Index.open(folder, embedder=WordEmbedder()) as index:
        end_readers(server)
        with open_store(folder).write() as writer:
            puts = [(WordDocument("b.md", "bark two"), DocumentMetadata())]
            writer.commit(IndexUpdate(puts=puts), reason="updated", keep=4)
            update_manifest(writer)
        with pytest.raises(ResourceError, match="does not answer"):
            index.newest()
        assert len(index.newest()) == 2


@pytest.mark.parametrize("is_read", [True, False])
def test_what_is_read_when_the_server_restarts_stays_or_is_said_to_be_gone(
    tmp_path, server, is_read
):
    folder = make(tmp_path, {"a.md": "purr one", "b.md": "bark two"})
    with Index.open(folder, embedder=WordEmbedder()) as index:
        end_readers(server)
        if is_read:
            with pytest.raises(ResourceError, match="does not answer"):
                index.passage_at(0)
            assert index.passage_at(0).text == "purr one"
        with open_store(folder).write() as writer:
            removed = writer.list_documents()["a.md"].key
            writer.commit(IndexUpdate(removes=[removed]), reason="gone", keep=1)
            update_manifest(writer)
        if is_read:
            assert index.search_keyword(Query("purr"), 3)
            assert index.passage_at(0).text == "purr one"
        else:
            with pytest.raises(ResourceError, match="does not answer"):
                index.search_keyword(Query("purr"), 3)
            with pytest.raises(DataError, match="snapshot 1 was removed") as caught:
                index.search_keyword(Query("purr"), 3)
            assert caught.value.code == "rag.no-such-snapshot"
        assert len(index.newest()) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_end_the_connections_of_its_parents_threads(tmp_path):
    folder = make(tmp_path, {"a.md": "purr one", "b.md": "bark two"})
    is_open, is_forked, found = threading.Event(), threading.Event(), []

    def read():
        for number in (0, 1):
            found.append(index.passage_at(number).text)
            is_open.set()
            is_forked.wait(60)

    with Index.open(folder, embedder=WordEmbedder()) as index:
        thread = threading.Thread(target=read)
        thread.start()
        is_open.wait(60)
        if not (process := os.fork()):
            os._exit(0)
        os.waitpid(process, 0)
        is_forked.set()
        thread.join()
    assert found == ["purr one", "bark two"]


def test_an_index_lives_in_a_database_through_the_command_line(folder, tmp_path, address):
    out, local = tmp_path / "index", tmp_path / "local"
    call("rag", "index", folder, "--out", out, "store=postgres", "embedder=builtin:static")
    call("rag", "index", folder, "--out", local, "embedder=builtin:static")
    told = read_artifact(out)
    assert told.digest == read_artifact(local).digest
    assert {path.name for path in (out / "output").iterdir()} == {"index.json", "store.json"}
    (folder / "animals/birds.md").write_text("Birds sing at dawn.\n")
    (folder / "code/cpp.md").unlink()
    for place in (out, local):
        assert "1 added, 0 changed, 0 renamed, 1 deleted" in call("rag", "update", place)
        call("rag", "delete", place, "places/")
    asked = ("rag", "search", "{}", "sing at dawn", "--json", "--where", "path ~ '*.md'")
    found = [
        json.loads(call(*(one.format(place) for one in asked)))["hits"] for place in (out, local)
    ]
    assert found[0] == found[1] != []
    assert "deleted: 2" in call("rag", "log", out)
    call("rag", "compact", out)
    assert "agree" in call("rag", "verify", out)
    assert verify_artifact(out) == []
    written = [path for path in out.rglob("*") if path.is_file()]
    assert not any(address.encode() in path.read_bytes() for path in written)


def test_an_index_that_is_built_anew_leaves_no_schema_behind(folder, tmp_path, address):
    def schemas():
        with psycopg.connect(address) as connection:
            rows = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'mine%'"
            ).fetchall()
        return {name for (name,) in rows}

    told = ("rag", "index", folder, "--out", tmp_path / "index", "embedder=builtin:static")
    settings = ("store.name=postgres", "store.prefix=mine")
    call(*told, *settings)
    before = schemas()
    call(*told, *settings, "--overwrite")
    assert len(before) == len(schemas()) == 1
    assert before != schemas()
    call(*told, "--overwrite")
    assert schemas() == set()


COMMIT = """
import sys
from pathlib import Path
from stillroom.rag.types import DocumentMetadata
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import open_store
from stillroom.testing.store import WordDocument
with open_store(Path(sys.argv[1])).write() as writer:
    def stop():
        print("at work", flush=True)
        sys.stdin.readline()
    puts = [(WordDocument(f"n{n}.txt", f"killed word{n}"), DocumentMetadata()) for n in range(50)]
    writer.commit(IndexUpdate(puts=puts), reason="killed", keep=2, check=stop)
"""


def test_a_writer_that_is_killed_leaves_nothing_and_holds_nothing(tmp_path):
    folder = make(tmp_path / "output", {"a.txt": "word1 word2", "b.txt": "word2"})
    writer = subprocess.Popen(
        [sys.executable, "-c", COMMIT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    for _ in range(4):  # at the fourth it is in the midst of its rows
        assert writer.stdout.readline().strip() == "at work"
        writer.stdin.write("\n")
        writer.stdin.flush()
    with pytest.raises(ResourceError) as caught:
        open_store(folder).write()
    assert caught.value.problems[0].code == "rag.busy"
    assert f"stillroom writer {writer.pid}" in caught.value.problems[0].what
    writer.kill()
    writer.communicate()
    assert check_index(folder) == []
    with Index.open(folder, embedder=WordEmbedder()) as index:
        assert index.snapshot == 1
        assert index.search_keyword(Query("killed"), 3) == []
    for _ in range(50):  # the server notices the end of a session within moments
        try:
            open_store(folder).write().close()
            break
        except ResourceError:
            subprocess.run(["sleep", "0.1"])
    else:
        pytest.fail("the lock of a killed writer stays")


def test_text_that_a_column_cannot_hold_is_found_and_given_as_it_was(tmp_path):
    odd = "nul\x00nul " + "x" * 5_000 + " word1"
    documents = {"a.txt": odd, "ü/b.txt": "word1 \ud800 word2"}
    with STORES.build("postgres").create(tmp_path / "output", describe_word_index()) as writer:
        puts = [
            (WordDocument("a.txt", odd), DocumentMetadata({"tag": "a\x00b"})),
            (
                WordDocument("ü/b.txt", documents["ü/b.txt"].replace("\ud800", "x")),
                DocumentMetadata(),
            ),
        ]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=4)
        update_manifest(writer)
    assert check_index(tmp_path / "output") == []
    with Index.open(tmp_path / "output", embedder=WordEmbedder()) as index:
        assert index.passage_at(0).text == odd
        assert [row for row, _ in index.search_keyword(Query("x" * 5_000), 5)] == [0]
        assert len(index.restrict('tag = "a\x00b"')) == 1
    assert build_term_key("x" * 5_000) != build_term_key("x" * 5_001)
    assert sanitize_column_text("a\x00\ud800") == "a\ufffd\ufffd"
    assert translate_parameters("a :b c::text") == b"a %(b)s c::text"


def test_approximate_search_uses_hnsw_and_a_narrow_filter_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 12)) for _ in range(1_500)]
    documents = {f"d{at:02d}.txt": "\n".join(lines[at * 50 : at * 50 + 50]) for at in range(30)}
    dense = {"search": "approximate", "from_passages": 1, "least_recall": 0.9}
    folder = make(tmp_path / "output", documents, dense=dense)
    shares = []
    with Index.open(folder, embedder=WordEmbedder()) as index:
        narrow = index.restrict("path = 'd03.txt'")
        for at in range(0, 200, 10):
            query = Query(" ".join(WORDS[at : at + 4]))
            exact = index.search_dense(query, 10, search="exact")
            near = index.search_dense(query, 10)
            assert all(dict(exact).get(row, score) == score for row, score in near)
            shares.append(np.mean([score >= exact[-1][1] for _, score in near]))
            assert narrow.search_dense(query, 5) == narrow.search_dense(query, 5, search="exact")
        found = index._state.dense.calibrate(
            np.stack([index.embed_query(Query(" ".join(WORDS[at : at + 4]))) for at in range(32)]),
            k=10,
            least=0.9,
        )
    assert np.mean(shares) >= 0.9
    assert found.recall >= 0.9
    assert found.oversampling is not None


def test_half_precision_has_the_scores_of_the_folder(tmp_path):
    documents = {f"d{at}.txt": f"word{at} word{at + 1} word9" for at in range(20)}
    puts = [(WordDocument(*one), DocumentMetadata()) for one in sorted(documents.items())]
    found = []
    for name in ("postgres", "folder"):
        description = describe_word_index()
        description["settings"]["vectors"] = "float16"
        with STORES.build(name).create(tmp_path / name, description) as writer:
            writer.commit(IndexUpdate(puts=puts), reason="built", keep=4)
            update_manifest(writer)
        assert check_index(tmp_path / name) == []
        with Index.open(tmp_path / name, embedder=WordEmbedder()) as index:
            found.append([index.search_dense(Query(f"word{at}"), 5) for at in range(20)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        ("UPDATE postings SET headings = '{7}' WHERE term = 'word1'", "postings"),
        ("UPDATE vectors SET vector = (SELECT vector FROM vectors LIMIT 1)", "vectors"),
        ("UPDATE documents SET tenant = 'x' WHERE path = 'a.txt'", "documents"),
        ("DELETE FROM passages WHERE key = (SELECT min(key) FROM passages)", "passages"),
        ("UPDATE fields SET words = 'x' WHERE name = 'title'", "fields"),
        ("UPDATE buckets SET digest = 'x'", "buckets"),
        ("UPDATE snapshots SET digest = 'x'", "snapshots"),
    ],
)
def test_check_names_what_was_changed_behind_its_back(tmp_path, address, sql, where):
    folder = make(tmp_path / "output", {"a.txt": "word1 word2\nword3", "b.txt": "word1"})
    schema = json.loads((folder / "store.json").read_text())["schema"]
    with psycopg.connect(address, options=f"-c search_path={schema},public") as connection:
        connection.execute(sql)
    found = check_index(folder)
    assert where in {one.path for one in found}
    if where == "postings":
        assert open_store(folder).repair(found, None) is None
        assert check_index(folder) == []
        with Index.open(folder, embedder=WordEmbedder()) as index:
            assert len(index.search_keyword(Query("word1"), 9)) == 2
    if where in {"snapshots", "documents"}:
        with pytest.raises(IntegrityError):
            Index.open(folder).close()


def test_a_server_that_is_not_there_is_named_without_its_address(tmp_path, monkeypatch):
    folder = make(tmp_path / "output", {"a.txt": "word1"})
    monkeypatch.setenv("STILLROOM_POSTGRES", "postgresql://me:secret@/x?host=/nowhere")
    with pytest.raises(ResourceError) as caught:
        Index.open(folder)
    assert caught.value.problems[0].code == "rag.store-unreachable"
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("STILLROOM_POSTGRES", "secret words")
    with pytest.raises(RecipeError) as caught:
        Index.open(folder)
    assert caught.value.problems[0].code == "rag.store-address"
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("STILLROOM_POSTGRES")
    with pytest.raises(RecipeError) as caught:
        Index.open(folder)
    assert caught.value.problems[0].code == "recipe.secret"


def test_a_database_of_another_encoding_is_refused(tmp_path, address, monkeypatch):
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE DATABASE odd TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    monkeypatch.setenv("STILLROOM_POSTGRES", address.replace("/postgres?", "/odd?"))
    with pytest.raises(ResourceError) as caught:
        make(tmp_path / "output", {"a.txt": "word1"})
    assert caught.value.problems[0].code == "rag.store-unfit"


def test_an_index_whose_schema_is_gone_says_so(tmp_path):
    folder = make(tmp_path / "output", {"a.txt": "word1"})
    open_store(folder).discard()
    with pytest.raises(IntegrityError) as caught:
        Index.open(folder)
    assert "has no schema" in caught.value.problems[0].what
