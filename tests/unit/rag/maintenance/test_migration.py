"""An index moves to PostgreSQL and back: proved before it is switched, killed, refused."""

import signal
import sys

import pytest
from click.testing import CliRunner
from tests.postgres import serve
from tests.processes import run_process

from stillroom.cli import stillroom
from stillroom.errors import DataError, IntegrityError
from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import STORES
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.maintenance import migration
from stillroom.rag.maintenance.migration import drop_source, migrate_index
from stillroom.rag.maintenance.update import check_index, update_index
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage.snapshots import open_store


@pytest.fixture(scope="module")
def server():
    with serve() as address:
        yield address


@pytest.fixture
def place(folder, tmp_path):
    run_recipe(IndexRecipe(documents=str(folder), embedder="static"), tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(autouse=True)
def _address(server, monkeypatch):
    monkeypatch.setenv("STILLROOM_POSTGRES", server)


def look(place):
    with Index.open(place) as index:
        asked = ("cat dog", "capital of France", "foo_bar C++", '"sixteen hours"')
        found = {query: retrieve(index, query, 5) for query in asked}
        return index.digest, found, index.fields


def call(*arguments):
    result = CliRunner().invoke(stillroom, [str(one) for one in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_an_index_moves_to_postgres_and_back_and_follows_its_folder_in_both(place, folder):
    before, artifact = look(place), read_artifact(place)
    with Index.open(place) as reader:
        said = call("rag", "migrate", place, "--to", "postgres", "prefix=moved")
        assert "6 documents copied from folder to postgres" in said
        assert "the largest difference of a score is 0" in said
        assert len(retrieve(reader, "cat", 1)) == 1  # what is open goes on
    assert look(place) == before
    assert read_artifact(place).digest == artifact.digest
    assert verify_artifact(place) == []
    assert check_index(place) == []
    assert (place / "source" / "ledger.sqlite").is_file()
    (folder / "new.txt").write_text("Owls hunt at night.\n")
    assert update_index(place).added == 1
    with pytest.raises(DataError) as caught:
        migrate_index(place, STORES.build("folder"))
    assert caught.value.problems[0].code == "rag.source-kept"
    assert "removed" in call("rag", "migrate", place, "--drop-source")
    after = look(place)
    with pytest.raises(DataError) as caught:
        migrate_index(place, STORES.build({"name": "postgres", "prefix": "moved"}))
    assert caught.value.problems[0].code == "rag.same-store"
    migrate_index(place, STORES.build("folder"))
    assert look(place) == after
    assert verify_artifact(place) == []
    assert drop_source(place)
    assert not drop_source(place)
    (folder / "new.txt").unlink()
    assert update_index(place).deleted == 1
    assert look(place) == before


KILLED = """
import os, sys
from pathlib import Path
from stillroom.rag.interfaces import STORES
from stillroom.rag.maintenance import migration
migration._BATCH_PASSAGES, left = 1, [int(sys.argv[3])]
commit = migration._commit
def kill_later(*args):
    commit(*args)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
migration._commit = kill_later
migration.migrate_index(Path(sys.argv[1]), STORES.build(sys.argv[2]))
"""


@pytest.mark.parametrize("store", ["postgres", "folder"])
def test_a_migration_that_was_killed_goes_on_and_the_source_is_never_lost(place, store):
    if store == "folder":
        migrate_index(place, STORES.build("postgres"))
        drop_source(place)
    before = look(place)
    killed = run_process(
        [sys.executable, "-c", KILLED, str(place), store, "4"],
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert look(place) == before
    assert check_index(place) == []
    assert migrate_index(place, STORES.build(store)).copied == 2
    assert look(place) == before
    assert verify_artifact(place) == []


def test_a_copy_that_is_not_the_index_is_never_switched_to(place, monkeypatch):
    before = look(place)
    copy = migration._copy

    def spoil(source, writer, method, job):
        copied = copy(source, writer, method, job)
        target = open_store(job.output)
        connection = target.server.connect("test")
        connection.execute(
            "UPDATE passages SET headings = headings + 3, words = words + 5 WHERE key IN "
            "(SELECT min(key) FROM passages)"
        )
        connection.close()
        return copied

    monkeypatch.setattr(migration, "_copy", spoil)
    with pytest.raises(IntegrityError) as caught:
        migrate_index(place, STORES.build("postgres"))
    assert caught.value.problems[0].code == "rag.copy-differs"
    assert look(place) == before
    assert not (place / "output" / "store.json").exists()
