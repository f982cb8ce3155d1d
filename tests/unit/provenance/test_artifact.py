import pytest

from stillroom.errors import DataError, IntegrityError
from stillroom.provenance import (
    Artifact,
    FileEntry,
    Parent,
    canonical_json,
    digest_bytes,
    digest_json,
    digest_text,
    find_output,
    make_parent,
    read_artifact,
)
from stillroom.provenance.artifact import list_files


def test_an_artifact_comes_back_from_json_and_its_digest_is_that_of_its_files():
    artifact = Artifact(
        "records",
        (FileEntry("output/a", 1, "d1"),),
        (Parent("index", "../index", "d2", "index"),),
        (FileEntry("report.html", 2, "d3"),),
        "r",
        7,
        {"kind": "human"},
        {"n": 1},
        {"stillroom": "0"},
        {"cores": 2},
        "now",
    )
    again = Artifact.from_json(artifact.to_json())
    assert again == artifact
    other = Artifact("checkpoint", artifact.files, created="later")
    assert other.digest == artifact.digest


def test_the_output_of_an_artifact_is_found_and_foreign_data_is_itself(run, tmp_path):
    assert find_output(run.merge, "checkpoint") == run.merge / "output"
    assert find_output(run.documents, "index") == run.documents
    with pytest.raises(DataError) as caught:
        find_output(run.merge, "records", "index")
    assert caught.value.code == "data.wrong-kind"
    assert caught.value.problems[0].expected == "records or index"
    with pytest.raises(DataError) as caught:
        find_output(tmp_path / "none", "records")
    assert caught.value.code == "data.missing"


def test_links_among_output_files_are_refused(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "x").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError) as caught:
        list_files(tmp_path)
    assert caught.value.code == "integrity.link"


def test_siblings_are_named_relatively_and_others_absolutely(run, tmp_path):
    near = make_parent("student", run.distill, run.merge)
    assert (near.path, near.kind) == ("../distill", "checkpoint")
    assert near.digest == read_artifact(run.distill).digest
    file = run.documents / "one.md"
    far = make_parent("documents", file, run.merge)
    assert far.path == str(file)
    assert far.digest == digest_bytes(file.read_bytes())


def test_equal_values_have_equal_digests():
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert digest_text("é") == digest_bytes("é".encode())
    assert len(digest_text("\ud800")) == 64
