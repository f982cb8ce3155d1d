import json
import os

import pytest

from stillroom.errors import DataError, IntegrityError
from stillroom.flow.inputs import check_inputs
from stillroom.jobs.job import write_artifact
from stillroom.models import resolve_checkpoint
from stillroom.provenance import (
    Artifact,
    FileEntry,
    Parent,
    canonical_json,
    digest_bytes,
    digest_json,
    digest_text,
    find_output,
    list_run_folders,
    make_parent,
    read_artifact,
    render_tree,
    trace_sources,
    verify_artifact,
    walk_lineage,
)
from stillroom.provenance.artifact import list_files
from stillroom.rag.graph.types import find_graph
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.serve.mounts import Mount, open_mount


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


def test_an_unfinished_job_is_called_so_wherever_it_is_named(tmp_path):
    (tmp_path / ".index.partial").mkdir()
    named = tmp_path / "index"
    for read in (
        find_output,
        read_artifact,
        find_graph,
        lambda path: resolve_checkpoint(str(path)),
        lambda path: check_inputs(IndexRecipe(documents=str(path))),
        lambda path: open_mount(Mount("x", str(path))).__enter__(),
    ):
        with pytest.raises(DataError, match="is unfinished: its work is in") as caught:
            read(named)
        assert caught.value.code == "data.unfinished"
        assert "--resume" in caught.value.problems[0].next
    with pytest.raises(DataError, match="does not exist"):  # its working folder's name is too long
        check_inputs(IndexRecipe(documents=str(tmp_path / ("a" * 250))))


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


def write_from(source, out, **options):
    parents, origin = trace_sources("test.copy", [("source", source, "", "")], out)
    write_artifact(out, "dataset", parents=parents, origin=origin, details={}, **options)
    return out


@pytest.mark.parametrize("kind", ["file", "folder", "folder with its artifact beside it"])
def test_what_no_job_wrote_is_walked_to_its_source_and_verified(run, tmp_path, kind):
    out = content = tmp_path / "out"
    if kind != "file":
        out.mkdir()
        content = out / "rows.csv"
    content.write_text("a,b\n")
    write_from(run.synth, out, is_beside="beside" in kind)
    assert (out / "artifact.json").exists() == (kind == "folder")
    assert (tmp_path / "out.artifact.json").exists() == (kind != "folder")
    tree = render_tree(walk_lineage(out))
    assert run.records[0].id in tree
    assert "one.md" in tree
    assert read_artifact(out).origin["kind"] == "unknown"  # the fixture states none
    assert not verify_artifact(out)
    content.write_text("a,c\n")
    (found,) = verify_artifact(out)
    assert (found.kind, found.path) == ("changed", "out" if kind == "file" else "rows.csv")


def test_an_edited_file_is_an_input_by_its_bytes_and_a_renamed_one_keeps_its_source(run, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("a\n")
    write_from(run.synth, table)
    later = tmp_path / "later.csv"
    later.write_text("b\n")
    write_from(table, later)
    assert read_artifact(later).parents[0].digest == read_artifact(table).digest
    assert not verify_artifact(later)
    assert run.records[0].id in render_tree(walk_lineage(later))
    for name in ("table.csv", "table.csv.artifact.json"):
        (tmp_path / name).rename(tmp_path / name.replace("table", "named"))
    assert not verify_artifact(tmp_path / "named.csv")
    assert "nothing lies here any more" in render_tree(walk_lineage(later))
    (tmp_path / "named.csv").write_text("edited\n")
    assert make_parent("x", tmp_path / "named.csv", later).digest == digest_bytes(b"edited\n")
    tree = render_tree(walk_lineage(tmp_path / "named.csv"))
    assert "changed since named.csv.artifact.json was written" in tree


def test_a_file_is_not_signed_and_a_name_beside_a_folder_decides_nothing(run, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_text("x")
    write_from(run.synth, file)
    with pytest.raises(DataError, match="is a file"):
        list_run_folders(file)
    assert read_artifact(run.merge).kind == "checkpoint"
    run.merge.with_name(f"{run.merge.name}.artifact.json").write_text("no artifact")
    assert read_artifact(run.merge).kind == "checkpoint"


@pytest.mark.parametrize("kind", ["file", "folder with its artifact beside it"])
def test_a_link_to_an_output_is_that_output(run, tmp_path, kind):
    out = content = tmp_path / "store" / "v3"
    out.parent.mkdir()
    if kind != "file":
        out.mkdir()
        content = out / "rows.csv"
    content.write_text("a\n")
    write_from(run.synth, out, is_beside=True)
    link = tmp_path / "current"
    link.symlink_to(out)
    assert run.records[0].id in render_tree(walk_lineage(link))
    assert not verify_artifact(link)
    content.write_text("b\n")
    assert [found.kind for found in verify_artifact(link)] == ["changed"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_artifact_beside_a_link_does_not_vouch_for_bytes_that_nobody_compared(
    run, tmp_path, kind
):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out / "rows.csv" if kind == "folder" else out).write_text("a\n")
    write_from(run.synth, out, is_beside=True)
    out.rename(tmp_path / "blob")
    out.symlink_to("blob")
    (tmp_path / "blob" / "rows.csv" if kind == "folder" else out).write_text("swapped\n")
    assert verify_artifact(out)


def test_what_an_artifact_beside_a_file_names_elsewhere_is_found_in_that_artifact(run, tmp_path):
    out = tmp_path / "out"
    out.write_text("a\n")
    write_from(run.synth, out)
    beside = tmp_path / "out.artifact.json"
    beside.write_text(beside.read_text().replace('"."', '"../../etc/passwd"'))
    assert "out.artifact.json" in {
        found.path for found in verify_artifact(out) if found.kind == "unsafe"
    }


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_of_that_name_is_named(run, tmp_path, make):
    make(tmp_path / "out.artifact.json")
    (tmp_path / "out").write_text("a\n")
    with pytest.raises(DataError, match=r"out\.artifact\.json is in the way"):
        write_from(run.synth, tmp_path / "out")


@pytest.mark.parametrize("text", ["my notes", "[]", '{"format": 1, "kind": "dataset"}', ""])
def test_a_file_of_the_user_with_that_name_is_not_overwritten(run, tmp_path, text):
    beside = tmp_path / "out.artifact.json"
    beside.write_text(text)
    (tmp_path / "out").write_text("a\n")
    with pytest.raises(DataError, match=r"out\.artifact\.json is in the way") as caught:
        write_from(run.synth, tmp_path / "out")
    assert caught.value.code == "data.exists"
    assert beside.read_text() == text
    beside.unlink()
    for _ in range(2):
        write_from(run.synth, tmp_path / "out")
    assert not verify_artifact(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"files": [["output/a", "1", "d"]]}, "has no size in bytes"),
        ({"files": [["output/a", -1, "d"]]}, "has no size in bytes"),
        ({"files": [["output/a", 10**400, "d"]]}, "has no size in bytes"),
        ({"timed_files": [[5, 1, "d"]]}, "is not a text"),
        ({"parents": [{"role": "x", "path": "a\0b", "digest": "d"}]}, "is no path"),
        ({"parents": [{"role": "x", "path": "a/" * 5000, "digest": "d"}]}, "is no path"),
        ({"created": 5}, "created is not a text"),
        ({"seed": float("nan")}, "seed not an integer"),
        ({"details": json.loads("[" * 300 + "]" * 300)}, "is not an object"),
        ({"details": {"a": json.loads("[" * 300 + "]" * 300)}}, "nested too deeply"),
        ([], "it is not an object"),
    ],
)
def test_values_that_no_code_could_use_are_refused(run, tmp_path, change, problem):
    path = run.merge / "artifact.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({**stated, **change} if isinstance(change, dict) else change))
    with pytest.raises(DataError) as caught:
        read_artifact(run.merge)
    assert caught.value.code == "data.not-an-artifact"
    assert problem in caught.value.problems[0].what


def test_a_folder_without_an_artifact_is_advised_by_what_it_holds(tmp_path):
    def read(path):
        with pytest.raises(DataError) as caught:
            read_artifact(path)
        return caught.value.problems[0]

    assert "rag index" in read(tmp_path).next
    assert "--resume" not in read(tmp_path).next
    begun = tmp_path / ".index.partial"
    begun.mkdir()
    (begun / "recipe.yaml").write_text("kind: rag.index\n")
    for path in (begun, tmp_path / "index"):
        assert "is unfinished" in read(path).what
        assert read(path).next.endswith("by the command that started it, with --resume")
