"""What `stillroom rag verify` finds, and what --repair makes again."""

import json
import shutil
import sqlite3

import pytest

from stillroom.errors import IntegrityError
from stillroom.flow import run_recipe
from stillroom.models import open_embedder
from stillroom.provenance import verify_artifact
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.maintenance.update import check_index, delete_documents, repair_index
from stillroom.rag.retrieval.pipeline import retrieve


@pytest.fixture
def place(folder, tmp_path):
    run_recipe(IndexRecipe(documents=str(folder), embedder="static"), tmp_path / "index")
    delete_documents(tmp_path / "index", ["animals/dogs.md"])
    return tmp_path / "index"


def change(place, sql):
    connection = sqlite3.connect(place / "output/ledger.sqlite")
    connection.execute(sql)
    connection.commit()
    connection.close()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_index_has_no_damage(place):
    assert check_index(place) == []
    assert repair_index(place) == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE passages SET body = CAST(replace(body, 'purr', 'bark') AS BLOB)", "own text"),
        ("UPDATE passages SET id = 'pas-x' WHERE key = (SELECT max(key) FROM passages)", "other"),
        ("DELETE FROM passages WHERE key = (SELECT max(key) FROM passages)", "other passages"),
        ("UPDATE contents SET body = x'00' WHERE key = 1", "cannot be read"),
        ("UPDATE contents SET mark = 'x' WHERE key = 1", "its bytes have changed"),
        ("UPDATE documents SET labels = '[\"all\"]' WHERE key = 1", "were changed"),
        ("UPDATE documents SET tenant = 'other' WHERE key = 1", "were changed"),
        ("INSERT INTO labels VALUES (1, 'all')", "labels or fields"),
        ("UPDATE fields SET value = 'x' WHERE document = 1", "labels or fields"),
        ("UPDATE contents SET fields = '{}' WHERE key = 1", "other fields"),
        ("INSERT INTO labels VALUES (99, 'all')", "without a document"),
        ("DELETE FROM contents WHERE key = 1", "no content"),
        ("DELETE FROM placements WHERE document = 1", "has 0 placements"),
        ("UPDATE placements SET start = 9999 WHERE document = 1", "lie beyond segment"),
        ("DELETE FROM documents WHERE key = 1", "has another digest"),
        ("UPDATE snapshots SET passages = 99", "counts"),
    ],
)
def test_damage_to_the_ledger_is_named_and_cannot_be_repaired(place, sql, said):
    change(place, sql)
    found = check_index(place)
    assert any(said in str(one) for one in found), [str(one) for one in found]
    assert not all(one.is_derived for one in found)


@pytest.mark.parametrize("name", ["passages_by_id", "passages", "documents"])
def test_damaged_pages_of_the_ledger_are_named(place, name):
    path = place / "output/ledger.sqlite"
    connection = sqlite3.connect(path)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))
    start = (root.fetchone()[0] - 1) * 4096
    connection.close()
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    found = check_index(place)
    assert any(one.path == "ledger.sqlite" for one in found)
    assert not all(one.is_derived for one in found)


def test_a_changed_byte_of_the_ledger_outside_its_content_is_found_and_repaired(place):
    path = place / "output/ledger.sqlite"
    data = bytearray(path.read_bytes())
    start = next(at for at in range(4096, len(data)) if not any(data[at : at + 256]))
    data[start + 128] = 88  # free space of a page
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        Index.open(place)
    assert [(one.path, one.is_derived) for one in check_index(place)] == [("ledger.sqlite", True)]
    repair_index(place)
    assert check_index(place) == verify_artifact(place, parents=False) == []
    with Index.open(place) as index:
        assert retrieve(index, "cats at night in France", 9)


def test_a_repair_lets_no_damaged_ledger_be_opened(place):
    change(place, "UPDATE passages SET body = CAST(replace(body, 'purr', 'bark') AS BLOB)")
    found = [str(one) for one in repair_index(place)]
    assert [str(one) for one in check_index(place)] == found != []
    with pytest.raises(IntegrityError, match="bytes have changed"):
        Index.open(place)


@pytest.mark.parametrize("name", ["vectors.npy", "postings.safetensors", "codes.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_segments_are_made_again_from_the_ledger(place, name, how):
    with Index.open(place) as index:
        digest, hits = index.digest, retrieve(index, "cats at night in France", 9)
    path = place / "output/segments/000001" / name
    if how == "flipped":
        flip(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()
    assert [one.is_derived for one in check_index(place)] == [True]
    repair_index(place, embedder=open_embedder("static"))
    assert check_index(place) == []
    assert verify_artifact(place, parents=False) == []
    with Index.open(place) as index:
        assert index.digest == digest
        assert retrieve(index, "cats at night in France", 9) == hits


def test_orphans_and_derived_files_are_named_and_mended(place):
    output = place / "output"
    shutil.copytree(output / "segments/000001", output / "segments/000077")
    (output / "snapshots/000099.json").write_text("{}")
    (output / "snapshots/000002.json").unlink()
    (output / "index.json").write_text("{}")
    told = json.loads((place / "artifact.json").read_text())
    told["details"]["snapshot"] = 1
    (place / "artifact.json").write_text(json.dumps(told))
    assert {one.path for one in check_index(place)} == {
        "segments/000077",
        "snapshots/000099.json",
        "snapshots/000002.json",
        "index.json",
        "artifact.json",
    }
    repair_index(place)
    assert check_index(place) == []
    assert verify_artifact(place, parents=False) == []
