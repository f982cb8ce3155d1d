"""An index that follows its folder: what is done anew, what is taken over, what is never lost."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.processes import run_process

from stillroom.cli import stillroom
from stillroom.errors import (
    BackendError,
    Cancelled,
    DataError,
    IntegrityError,
    RecipeError,
    ResourceError,
)
from stillroom.flow import run_recipe
from stillroom.models import open_embedder
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.interfaces import Query
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.maintenance.update import (
    check_index,
    compact_index,
    delete_documents,
    list_snapshots,
    update_index,
)
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage.folder.writer import FolderIndexWriter

QUERIES = ("cat dog", "capital of France", "foo_bar C++", "日本", "a house at night", "nine lives")


@pytest.fixture
def place(folder, tmp_path):
    return build_in(folder, tmp_path / "index")


def build_in(folder, out):
    run_recipe(IndexRecipe(documents=str(folder), embedder="static"), out)
    return out


def look(place):
    """Return all that a reader can find: rows with scores, and the passages in order."""
    with Index.open(place) as index:
        found = {
            query: (index.search_keyword(Query(query), 50), index.search_dense(Query(query), 50))
            for query in QUERIES
        }
        return index.digest, found, [index.passage_at(row) for row in range(len(index))]


class Counting:
    """The embedder of hashed words, which counts what it is asked and may fail."""

    def __init__(self, fail_at=10_000):
        self._inner, self.texts, self.fail_at = open_embedder("static"), [], fail_at

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def embed(self, texts, *, kind):
        if len(self.texts) >= self.fail_at:
            raise BackendError("the endpoint is down", code="backend.down")
        self.texts += texts
        return self._inner.embed(texts, kind=kind)


def test_an_unchanged_folder_opens_no_embedder_and_makes_no_snapshot(place, monkeypatch):
    def refuse(*_):
        raise AssertionError("the embedder was opened")

    monkeypatch.setattr("stillroom.models.open_embedder", refuse)
    done = update_index(place)
    assert (done.unchanged, done.parsed, done.embedded, done.snapshot) == (6, 0, 0, 1)
    assert verify_artifact(place) == []


def test_an_index_whose_recipe_names_the_only_pooling_is_updated(place, folder):
    recipe = place / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("embedding:\n", "embedding:\n  pooling: passage\n"))
    (folder / "new.txt").write_text("The mill grinds corn.\n")
    assert update_index(place).added == 1
    recipe.write_text(text.replace("embedding:\n", "embedding:\n  pooling: late\n"))
    with pytest.raises(RecipeError, match=r"embedding\.pooling is not a setting") as caught:
        update_index(place)
    assert f"rag rebuild {place} --recipe NEW" in str(caught.value)


@pytest.mark.parametrize("command", ["update", "rebuild"])
def test_an_index_of_a_version_with_other_settings_is_to_be_rebuilt_by_a_copy(command, place):
    recipe = place / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("keyword:\n", "keyword:\n  variant: lucene\n"))
    with pytest.raises(RecipeError, match=r"keyword\.variant is not a setting") as caught:
        CliRunner().invoke(stillroom, ["rag", command, str(place)], catch_exceptions=False)
    assert f"rag rebuild {place} --recipe NEW" in str(caught.value)


def test_each_kind_of_change_is_counted_and_gives_what_a_fresh_build_gives(place, folder, tmp_path):
    (folder / "animals/cats.md").write_text("# Cats\n\nA cat has nine lives.\n")
    (folder / "animals/birds.md").write_text("Birds sing at dawn.\n")
    (folder / "code/cpp.md").unlink()
    (folder / "moved").mkdir()
    (folder / "places/paris.txt").rename(folder / "moved/paris.txt")
    done = update_index(place)
    assert (done.added, done.changed, done.renamed, done.deleted) == (1, 1, 1, 1)
    assert (done.unchanged, done.parsed, done.embedded) == (3, 2, 2)
    assert look(place) == look(build_in(folder, tmp_path / "fresh"))
    assert read_artifact(place).digest == read_artifact(tmp_path / "fresh").digest
    assert verify_artifact(place) == []
    assert list_snapshots(place)[-1].reason == "updated: 1 added, 1 changed, 1 renamed, 1 deleted"


def test_a_rename_parses_and_embeds_nothing_and_changes_the_ids(place, folder):
    with Index.open(place) as index:
        old = retrieve(index, "capital of France", 1)[0].passage
    (folder / "places/paris.txt").rename(folder / "paris.txt")
    counting = Counting()
    done = update_index(place, embedder=counting)
    assert (done.renamed, done.parsed, counting.texts) == (1, 0, [])
    with Index.open(place) as index:
        new = retrieve(index, "capital of France", 1)[0].passage
        assert new.location.path == "paris.txt"
        assert new.text == old.text
        assert new.id != old.id
        with pytest.raises(DataError):
            index.passage(old.id)


def test_a_file_whose_name_was_its_title_is_parsed_again_when_it_is_renamed(place, folder):
    (folder / "places/paris.txt").rename(folder / "places/london.txt")
    done = update_index(place)
    assert done.renamed == 0
    assert (done.added, done.deleted, done.parsed) == (1, 1, 1)
    with Index.open(place) as index:
        assert retrieve(index, "capital of France", 1)[0].passage.title == "london"


def test_a_copy_is_not_embedded_again(place, folder):
    shutil.copy(folder / "animals/cats.md", folder / "cats.md")
    counting = Counting()
    assert update_index(place, embedder=counting).added == 1
    assert counting.texts == []
    with Index.open(place) as index:
        hits = retrieve(index, "purr", 2, retriever="keyword")
        assert [hit.passage.location.path for hit in hits] == ["animals/cats.md", "cats.md"]
        assert hits[0].score == hits[1].score


def test_a_changed_paragraph_embeds_its_own_passage_alone(folder, tmp_path):
    parts = [f"## Part {n}\n\n" + f"Word{n} is said here. " * 60 for n in range(8)]
    (folder / "long.md").write_text("# Long\n\n" + "\n\n".join(parts))
    place = build_in(folder, tmp_path / "index")
    parts[4] = parts[4].replace("Word4", "Other", 1)
    (folder / "long.md").write_text("# Long\n\n" + "\n\n".join(parts))
    counting = Counting()
    update_index(place, embedder=counting)
    assert 1 <= len(counting.texts) <= 3
    assert look(place) == look(build_in(folder, tmp_path / "fresh"))


def test_a_listing_that_fails_deletes_nothing(place, folder, monkeypatch):
    walk = os.walk

    def half(root, *, onerror=None, **options):
        if onerror is not None:
            onerror(PermissionError(13, "Permission denied", str(folder / "animals")))
        return walk(root, **options)

    before = look(place)
    monkeypatch.setattr(os, "walk", half)
    with pytest.raises(DataError, match="cannot be listed completely") as caught:
        update_index(place)
    assert caught.value.code == "rag.partial-listing"
    assert look(place) == before


def test_folders_that_no_document_is_read_from_need_not_be_readable(folder, tmp_path, monkeypatch):
    """Neither hidden ones, nor any beside a single document."""
    for name in (".private", "places"):
        (folder / name).mkdir(exist_ok=True)
    whole, single = tmp_path / "whole", tmp_path / "single"
    build_in(folder / "animals/cats.md", single)
    scan = os.scandir

    def refuse(path):
        if not isinstance(path, int) and Path(path).name in unreadable:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    build_in(folder, whole)
    unreadable = {".private"}
    monkeypatch.setattr(os, "scandir", refuse)
    assert update_index(whole).unchanged == 6
    unreadable = {".private", "places", "animals"}
    assert update_index(single).unchanged == 1
    with pytest.raises(DataError) as caught:
        update_index(whole)
    assert caught.value.code == "rag.partial-listing"
    assert caught.value.problems[0].where in {str(folder / name) for name in unreadable}


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_document_replaced_by_a_link_is_deleted_once(place, folder, tmp_path, is_moved):
    (tmp_path / "outside.md").write_text("Outside.\n")
    cats = folder / "animals/cats.md"
    if is_moved:
        cats.rename(folder / "moved.md")
    else:
        cats.unlink()
    cats.symlink_to(tmp_path / "outside.md")
    done = update_index(place, max_failed=1)
    assert (done.added, done.renamed, done.deleted, done.failed) == (int(is_moved), 0, 1, 1)
    assert done.unchanged == 5
    with Index.open(place) as index:
        paths = {index.passage_at(row).location.path for row in range(len(index))}
        assert len(paths) == 5 + is_moved
        assert ("moved.md" in paths) == is_moved
    assert check_index(place) == []


def test_an_empty_or_missing_folder_deletes_nothing(place, folder, tmp_path):
    before = look(place)
    shutil.rmtree(folder)
    with pytest.raises(DataError):
        update_index(place)
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        update_index(place)
    assert caught.value.code == "rag.no-documents"
    assert look(place) == before


def test_a_file_that_cannot_be_read_keeps_what_it_was(place, folder, monkeypatch):
    from stillroom.rag.ingestion import discovery

    digest = discovery.digest_file

    def refuse(path):
        if path.name == "cats.md":
            raise OSError(5, "Input/output error")
        return digest(path)

    monkeypatch.setattr(discovery, "digest_file", refuse)
    done = update_index(place)
    assert (done.deleted, done.failed, done.unchanged) == (0, 1, 5)
    with Index.open(place) as index:
        assert retrieve(index, "purr", 1)[0].passage.location.path == "animals/cats.md"


def test_a_file_that_cannot_be_used_any_more_leaves_with_its_reason(place, folder):
    (folder / "animals/cats.md").write_bytes(b"")
    done = update_index(place)
    assert (done.deleted, done.failed) == (1, 1)
    failed = read_artifact(place).details["failed"]
    assert [(one["path"], one["code"]) for one in failed] == [
        ("animals/cats.md", "document.no-text")
    ]
    assert update_index(place).snapshot == done.snapshot


def test_too_many_failures_change_nothing(place, folder):
    before = look(place)
    for path in folder.rglob("*.md"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        update_index(place)
    assert caught.value.code == "rag.documents-failed"
    assert look(place) == before


def test_an_update_goes_on_after_the_embedder_failed(place, folder, tmp_path):
    for number in range(6):
        (folder / f"new{number}.txt").write_text(f"The topic{number} is told of here.\n")
    before = look(place)
    failing = Counting(fail_at=3)
    with pytest.raises(BackendError):
        update_index(place, embedder=failing)
    assert look(place) == before
    counting = Counting()
    done = update_index(place, embedder=counting)
    assert done.added == 6
    assert len(failing.texts) + len(counting.texts) == 6
    assert look(place) == look(build_in(folder, tmp_path / "fresh"))
    assert not (place.parent / "..index.update.partial").exists()


def test_a_killed_update_leaves_the_index_and_goes_on(place, folder, tmp_path):
    for number in range(6):
        (folder / f"new{number}.txt").write_text(f"The topic{number} is told of here.\n")
    before = look(place)
    program = """
import os, sys
from pathlib import Path
from stillroom.models import open_embedder
from stillroom.rag.maintenance.update import update_index

kind = type(open_embedder("static"))
embed, count = kind.embed, []

def die(self, texts, *, kind):
    count.append(len(texts))
    if len(count) == 4:
        os.kill(os.getpid(), 9)
    return embed(self, texts, kind=kind)

kind.embed = die
update_index(Path(sys.argv[1]))
"""
    command = [sys.executable, "-c", program, str(place)]
    done = run_process(command)
    assert done.returncode == -9, done.stderr
    assert look(place) == before
    counting = Counting()
    assert update_index(place, embedder=counting).added == 6
    assert len(counting.texts) == 3
    assert look(place) == look(build_in(folder, tmp_path / "fresh"))


def test_another_embedder_or_version_is_refused(place, folder, monkeypatch):
    (folder / "new.txt").write_text("Something new.\n")
    with pytest.raises(IntegrityError) as caught:
        update_index(place, embedder=open_embedder("static", dimensions=256))
    assert caught.value.code == "rag.embedder-mismatch"
    monkeypatch.setattr("stillroom.rag.ingestion.pipeline.__version__", "999")
    with pytest.raises(IntegrityError) as caught:
        update_index(place)
    assert caught.value.code == "rag.other-preparation"


def test_words_cut_by_another_analysis_are_never_mixed_in(place, folder, monkeypatch):
    (folder / "news.md").write_text("The mill grinds corn.\n")
    monkeypatch.setattr("stillroom.rag.analysis.analyzer.ANALYZER_VERSION", 999)
    with pytest.raises(IntegrityError) as caught:
        update_index(place)
    assert caught.value.code == "rag.analyzer-mismatch"
    assert [one.number for one in list_snapshots(place)] == [1]
    delete_documents(place, ["animals/cats.md"])  # what must go goes, without new words
    assert [one.number for one in list_snapshots(place)][-1] == 2
    monkeypatch.undo()
    with Index.open(place) as index:
        assert len(index)


def test_an_update_waits_for_no_other_writer(place):
    with FolderIndexWriter.open(place / "output"), pytest.raises(ResourceError) as caught:
        update_index(place)
    assert caught.value.code == "rag.busy"


def test_a_stopped_update_changes_nothing(place, folder, monkeypatch):
    (folder / "new.txt").write_text("Something new.\n")
    before = look(place)

    def stop(job):
        raise Cancelled("stopped", code="job.cancelled")

    monkeypatch.setattr("stillroom.jobs.Job.check_cancelled", stop)
    with pytest.raises(Cancelled):
        update_index(place)
    assert look(place) == before


def test_brackets_in_a_pattern_of_deletion_are_text(place, folder):
    (folder / "plan v.md").write_text("A plan of the harbor.\n")
    (folder / "notes [v].md").write_text("Notes on the lighthouse.\n")
    update_index(place)
    delete_documents(place, ["*[v].md"])
    with Index.open(place) as index:
        paths = {index.passage_at(row).location.path for row in range(len(index))}
    assert "plan v.md" in paths
    assert "notes [v].md" not in paths


def test_documents_are_deleted_by_path_folder_and_pattern(place, folder):
    snapshot = delete_documents(place, ["animals/", "*.txt"])
    assert snapshot.documents == 2
    assert snapshot.reason == "deleted: 4"
    with Index.open(place) as index:
        assert {index.passage_at(row).location.path for row in range(len(index))} == {
            "code/cpp.md",
            "code/python.md",
        }
    assert delete_documents(place, []).number == snapshot.number
    with pytest.raises(DataError, match=r"no document at 'animals/cats\.md'") as caught:
        delete_documents(place, ["code/cpp.md", "animals/cats.md"])
    assert caught.value.code == "rag.no-such-path"
    assert list_snapshots(place)[-1].number == snapshot.number
    assert verify_artifact(place) == []
    assert update_index(place).added == 4


def test_many_updates_keep_few_segments_and_snapshots(place, folder, tmp_path):
    for number in range(24):
        (folder / "turn.txt").write_text(f"This is turn {number} of many.\n")
        update_index(place)
    assert len(list((place / "output/segments").iterdir())) <= 8 + 16
    assert len(list_snapshots(place)) == 16
    with Index.open(place) as index:
        assert len(index._state.opened.segments) <= 8
    done = compact_index(place)
    assert done.segments_after == 1
    assert done.bytes_after < done.bytes_before
    assert look(place) == look(build_in(folder, tmp_path / "fresh"))
    assert verify_artifact(place) == []


def test_compaction_says_when_a_reader_holds_older_snapshots(place):
    with Index.open(place):
        delete_documents(place, ["animals/cats.md"])
        assert compact_index(place).held == 2
    assert compact_index(place).held == 0


def test_files_that_a_command_names_are_found_again_from_elsewhere(folder, tmp_path, monkeypatch):
    told = '{{"path": "animals/cats.md", "tenant": "acme", "labels": ["{}"]}}\n'
    (tmp_path / "told.jsonl").write_text(told.format("public"))
    monkeypatch.chdir(tmp_path)
    words = ["rag", "index", str(folder), "--out", "index", "metadata=./told.jsonl"]
    done = CliRunner().invoke(stillroom, [*words, "access=tenants", "embedder=builtin:static"])
    assert done.exit_code == 0, (done.output, done.exception)
    (tmp_path / "told.jsonl").write_text(told.format("staff"))
    monkeypatch.chdir(folder)
    assert update_index(tmp_path / "index").with_new_metadata == 1
    with Index.open(tmp_path / "index", access=AccessContext("acme", [])) as index:
        assert len(index) == 0
    monkeypatch.chdir(tmp_path)
    words = ["rag", "rebuild", "index", "metadata=./told.jsonl", "chunker.size=40"]
    done = CliRunner().invoke(stillroom, [*words, "--tenant", "acme", "--principal", "staff"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "(no interval)" in done.output  # of one question
    monkeypatch.chdir(folder)
    assert update_index(tmp_path / "index").with_new_metadata == 0
