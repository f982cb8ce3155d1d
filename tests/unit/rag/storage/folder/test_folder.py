"""Snapshots, pins and the lock of an index, changed through its writer."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest
from tests.processes import run_process

from stillroom.errors import DataError, IntegrityError, ResourceError
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage.folder.catalog import Catalog
from stillroom.rag.storage.folder.segments import get_segment_folder
from stillroom.rag.storage.folder.store import check_folder
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import IndexUpdate

KILLED = """
import os, sys
from pathlib import Path
from stillroom.rag.storage.folder import writer
from stillroom.rag.storage.folder.reader import open_folder_snapshot
from stillroom.rag.types import DocumentMetadata, RenamedDocument
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.folder.reader import FolderReusableContent

folder = Path(sys.argv[1])
reusable = FolderReusableContent(open_folder_snapshot(folder, verify=False))
digest = reusable.catalog.query("SELECT digest FROM contents")[0][0]
part = RenamedDocument(reusable.find_same(digest)[0], "x.md")
writer.write_snapshot_file = lambda *_, **__: os.kill(os.getpid(), 9)
change = IndexUpdate(puts=[(part, DocumentMetadata())])
writer.FolderIndexWriter.open(folder).commit(change, reason="killed", keep=1)
"""


@pytest.fixture
def place(build, tmp_path):
    build()
    return tmp_path / "index"


def remove(place, *paths, keep=16):
    with FolderIndexWriter.open(place / "output") as writer:
        rows = writer.catalog.query("SELECT key, path FROM documents WHERE died > 1000000")
        keys = [key for key, path in rows if path in paths]
        return writer.commit(IndexUpdate(removes=keys), reason="removed", keep=keep)


def paths_of(index):
    return sorted({index.passage_at(row).location.path for row in range(len(index))})


def test_a_reader_sees_its_snapshot_until_it_refreshes(place):
    with Index.open(place) as index:
        before = paths_of(index)
        first = index.digest
        remove(place, "animals/cats.md")
        assert paths_of(index) == before
        assert retrieve(index, "purr", 1)[0].passage.location.path == "animals/cats.md"
        assert index.refresh()
        assert not index.refresh()
        assert "animals/cats.md" not in paths_of(index)
        assert "animals/cats.md" not in {
            hit.passage.location.path for hit in retrieve(index, "purr cats", 10)
        }
        assert index.digest != first


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_snapshot_whose_file_a_power_failure_took_is_there_again(place, monkeypatch, is_empty):
    def lose_power(folder, number):
        path = folder / "snapshots" / f"{number:06d}.json"
        path.write_bytes(b"") if is_empty else path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stillroom.rag.storage.folder.writer.sync_snapshot_file", lose_power)
        with pytest.raises(KeyboardInterrupt):
            remove(place, "animals/cats.md")
    remove(place)
    told = json.loads((place / "output/snapshots/000002.json").read_text())
    with Index.open(place, snapshot=2) as index:
        assert told == {"snapshot": 2, "digest": index.digest}
        assert "animals/cats.md" not in paths_of(index)
    found = check_folder(place / "output")  # a bare writer renews neither of these
    assert {one.path for one in found} <= {"artifact.json", "index.json"}


def test_a_deleted_document_is_gone_from_every_way_to_reach_it(place):
    with Index.open(place) as index:
        hit = retrieve(index, "purr", 1)[0]
        before = index.lexicon.document_frequency("purr")
        remove(place, "animals/cats.md")
        index.refresh()
        for ask in (index.passage, index.row_of):
            with pytest.raises(DataError) as caught:
                ask(hit.passage.id)
            assert caught.value.code == "rag.no-such-passage"
        with pytest.raises(DataError) as caught:
            index.document(hit.passage.document_id)
        assert caught.value.code == "rag.no-such-document"
        assert before == 1
        assert index.lexicon.document_frequency("purr") == 0
        assert index.lexicon.population == len(index) == 5


def test_an_older_snapshot_is_asked_by_number_or_by_digest(place):
    with Index.open(place) as index:
        digest = index.digest
    remove(place, "animals/cats.md")
    for wanted in (1, "1", digest, digest[:12]):
        with Index.open(place, snapshot=wanted) as index:
            assert index.digest == digest
            assert "animals/cats.md" in paths_of(index)


def test_a_snapshot_that_is_not_kept_is_refused_and_its_text_is_off_the_disk(place):
    assert b"sixteen hours" in (place / "output/ledger.sqlite").read_bytes()
    remove(place, "animals/cats.md", keep=1)
    with pytest.raises(DataError, match="has no snapshot '1'") as caught:
        Index.open(place, snapshot=1)
    assert caught.value.code == "rag.no-such-snapshot"
    assert b"sixteen hours" not in (place / "output/ledger.sqlite").read_bytes()


def test_what_a_reader_needs_stays_while_it_reads(place):
    index = Index.open(place)
    remove(place, *paths_of(index), keep=1)
    assert get_segment_folder(place / "output", 1).is_dir()
    assert retrieve(index, "purr", 1)[0].passage.location.path == "animals/cats.md"
    assert index.document(index.passage_at(0).document_id).text
    index.close()
    remove(place, keep=1)
    assert not get_segment_folder(place / "output", 1).exists()


def test_an_emptied_index_finds_nothing(place):
    with Index.open(place) as index:
        remove(place, *paths_of(index))
        index.refresh()
        assert len(index) == 0
        assert retrieve(index, "cat") == []
        assert index.search_keyword(_query("cat"), 5) == []
        assert index.search_dense(_query("cat"), 5) == []


def test_a_second_writer_is_refused_and_told_who_writes(place):
    with FolderIndexWriter.open(place / "output"):
        with pytest.raises(ResourceError) as caught:
            FolderIndexWriter.open(place / "output")
        with Index.open(place) as index:
            assert retrieve(index, "purr", 1)
    assert caught.value.code == "rag.busy"
    assert f"process {os.getpid()}" in str(caught.value)
    assert caught.value.problems[0].where == str(place)  # as one names the index
    FolderIndexWriter.open(place / "output").close()


def test_a_folder_that_cannot_be_written_is_read_but_not_changed(place, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("stillroom.rag.storage.folder.catalog.Path.open", refuse)
    with pytest.raises(ResourceError, match="Permission denied") as caught:
        FolderIndexWriter.open(place / "output")
    assert caught.value.code == "rag.read-only"


def test_what_a_killed_writer_left_is_never_seen_and_goes_with_the_next(place):
    with Index.open(place) as index:
        digest, count = index.digest, len(index)
    command = [sys.executable, "-c", KILLED, str(place / "output")]
    done = run_process(command)
    assert done.returncode == -9, done.stderr
    assert get_segment_folder(place / "output", 2).is_dir()
    with Index.open(place) as index:
        assert (index.digest, len(index)) == (digest, count)
    with FolderIndexWriter.open(place / "output") as writer:
        assert writer.catalog.query("SELECT count(*) FROM contents") == [(6,)]
        assert writer.catalog.find_snapshot().digest == digest
    assert not get_segment_folder(place / "output", 2).exists()


def test_compaction_changes_what_lies_on_the_disk_and_nothing_that_is_found(place):
    remove(place, "animals/cats.md")
    with Index.open(place) as index:
        digest, found = index.digest, retrieve(index, "dogs bark at night", 5)
    with FolderIndexWriter.open(place / "output") as writer:
        writer.compact()
    assert [path.name for path in (place / "output/segments").iterdir()] == ["000003"]
    assert b"sixteen hours" not in (place / "output/ledger.sqlite").read_bytes()
    with Index.open(place) as index:
        assert index.digest == digest
        assert index.snapshot == 3
        assert retrieve(index, "dogs bark at night", 5) == found


def _query(text):
    from stillroom.rag.interfaces import Query

    return Query(text)


def test_a_question_that_is_being_answered_keeps_its_snapshot(place):
    with Index.open(place) as first:
        assert first.newest() is first
        remove(place, "animals/cats.md")
        second = first.newest()
        assert "animals/cats.md" in paths_of(first)
        assert "animals/cats.md" not in paths_of(second)
        assert second.newest() is second
        remove(place, "animals/dogs.md", keep=1)
        assert "animals/dogs.md" in paths_of(second)
        assert paths_of(first.newest()) == paths_of(second.newest())


def test_threads_that_have_ended_leave_no_open_file(place):
    def count_open():
        opened = Path("/proc/self/fd").iterdir()
        return sum(path.resolve().name == "ledger.sqlite" for path in opened)

    with Index.open(place) as index:
        for _ in range(8):  # the server answers each request in a thread of its own
            thread = threading.Thread(target=retrieve, args=(index, "purr", 1))
            thread.start()
            thread.join()
        assert count_open() == 1
    assert count_open() == 0


def test_an_index_that_is_closed_while_a_thread_reads_closes_when_it_has_read(place):
    """Closing a connection of SQLite during a statement would crash the process."""
    is_reading, is_closed, found = threading.Event(), threading.Event(), []
    catalog = Catalog(place / "output")

    def wait():
        is_reading.set()
        return is_closed.wait(60)

    def read():
        with catalog._connections.use(catalog._connect) as connection:
            connection.create_function("wait", 0, wait)
        found.extend(catalog.query("SELECT wait() UNION ALL SELECT 2"))

    thread = threading.Thread(target=read)
    thread.start()
    is_reading.wait(60)
    catalog.close()
    is_closed.set()
    thread.join()
    assert found == [(1,), (2,)]


def test_an_index_that_was_replaced_is_not_mixed_with_the_one_that_is_open(place, folder, build):
    with Index.open(place) as index:
        hit = retrieve(index, "purr", 1)[0]
        (folder / "animals/cats.md").unlink()
        build()
        caught = []

        def look():
            try:
                index.passage(hit.passage.id)
            except IntegrityError as error:
                caught.append(error.problems[0].code)

        thread = threading.Thread(target=look)  # a new thread opens the file anew
        thread.start()
        thread.join()
        assert caught == ["rag.index-replaced"]
        assert index.passage(hit.passage.id) == hit.passage
