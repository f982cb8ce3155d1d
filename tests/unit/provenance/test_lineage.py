import json
import shutil

import pytest

from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.provenance import (
    Parent,
    find_passages,
    make_parent,
    read_artifact,
    render_tree,
    resolve_parent,
    walk_lineage,
    walk_record,
)
from stillroom.provenance.lineage import ProvenanceNode
from stillroom.records import Message, Origin, Record, write_records


def nodes(node):
    yield node
    for child in node.children:
        yield from nodes(child)


def find(node, kind, title=""):
    return [each for each in nodes(node) if each.kind == kind and title in each.title]


def notes(node):
    return [note for each in nodes(node) for note in each.notes]


def rewrite(folder, change):
    path = folder / "artifact.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_checkpoint_is_walked_to_the_bytes_of_its_documents(run):
    tree = walk_lineage(run.merge)
    assert [child.title for child in tree.children] == ["student"]
    student = tree.children[0]
    assert next((c.title, c.kind, c.path) for c in student.children) == (
        "teacher",
        "checkpoint",
        "hub:org/teacher",
    )
    record = find(tree, "record", run.records[0].id)[0]
    assert record.origin == "synthetic, CC0-1.0"
    last = record.children[0]
    assert (last.title, last.notes) == ("synth.filters.judge", ("model judge-ba7",))
    generated = last.children[0]
    assert generated.notes == ("model model-f00",)
    passage = generated.children[0]
    assert passage.title == run.passages[0].id
    document = passage.children[0]
    start, end = (int(part) for part in document.title.split("bytes ")[1].split(",")[0].split("-"))
    with open(document.path, "rb") as file:  # noqa: PTH123
        assert file.read()[start:end].decode() == run.passages[0].text
    assert document.notes == ()


def test_an_index_counts_origins_and_shows_passages(run):
    tree = walk_lineage(run.index, examples=1)
    assert tree.notes == ("2 documents: 2 human", "2 passages: 2 human")
    assert len(find(tree, "passage")) == 1
    assert tree.children[-1].title == "documents"
    assert tree.children[-1].kind == "folder"
    assert not find(walk_lineage(run.index, examples=0), "passage")


def test_a_run_begins_with_its_last_step_and_shows_each_in_full_once(run):
    tree = walk_lineage(run.root, examples=1)
    assert [child.title for child in tree.children] == ["merge", "distill", "synth", "index"]
    assert all("shown above" in child.notes for child in tree.children[1:])
    assert len(find(tree, "record")) == 1


def test_a_run_that_moved_keeps_its_lineage(run, tmp_path):
    shutil.move(run.root, tmp_path / "elsewhere")
    tree = walk_lineage(tmp_path / "elsewhere" / "steps" / "merge")
    assert not find(tree, "missing")
    assert find(tree, "passage")


def test_what_is_missing_or_changed_is_shown(run):
    (run.documents / "one.md").write_text("changed")
    (run.documents / "deep/two.md").unlink()
    tree = walk_lineage(run.index)
    assert "the file has changed since it was read" in notes(tree)
    assert "the file is gone" in notes(tree)
    shutil.rmtree(run.index)
    tree = walk_lineage(run.synth)
    gone = [node.title for node in find(tree, "missing")]
    assert gone == [run.passages[0].id, run.passages[1].id, "index"]


def test_a_parent_made_anew_is_said(run):
    rewrite(run.synth, lambda data: data["parents"][0].update(digest="0" * 64))
    tree = walk_lineage(run.synth)
    assert any(note.startswith("changed since: it was 0000") for note in notes(tree))


def test_a_broken_parent_is_shown_and_a_broken_root_raises(run):
    (run.index / "artifact.json").write_text("{")
    assert find(walk_lineage(run.synth), "broken", "index")
    with pytest.raises(DataError) as caught:
        walk_lineage(run.index)
    assert caught.value.code == "data.not-an-artifact"
    with pytest.raises(DataError):
        walk_lineage(run.root / "none")


def test_damaged_contents_are_noted_and_the_parents_still_shown(run):
    (run.index / "output/passages.jsonl").write_text('{"id": "pas-1"\n')
    tree = walk_lineage(run.index)
    assert any("cannot be read" in note for note in tree.notes)
    assert tree.children[-1].title == "documents"
    (run.synth / "output/records.jsonl").write_text("[]\n")
    assert any("cannot be read" in note for note in walk_lineage(run.synth).notes)
    with pytest.raises(DataError) as caught:
        find_passages(run.index, ["pas-1"])
    assert caught.value.code == "data.damaged"
    (run.index / "output/passages.jsonl").write_text('{"id": "pas-1"}\n')
    with pytest.raises(DataError):
        find_passages(run.index, ["pas-1"])


def test_a_circle_ends(run):
    rewrite(
        run.index,
        lambda data: data["parents"].append(
            {"role": "loop", "kind": "checkpoint", "path": "../merge", "digest": ""}
        ),
    )
    tree = walk_lineage(run.merge)
    assert any("circle" in note for note in notes(tree))
    assert walk_record(run.merge, run.records[1].id).kind == "record"


def test_a_wide_web_of_parents_is_walked_in_little_time(tmp_path):
    before = []
    for level in range(16):
        layer = []
        for side in "ab":
            job = Job.start(tmp_path / f"{side}{level}", "kind: x\n")
            (job.output / "x").write_text(f"{level}{side}")
            parents = [make_parent(path.name, path, tmp_path / "x") for path in before]
            job.finish("checkpoint", parents=parents)
            layer.append(job.out)
        before = layer
    assert len(list(nodes(walk_lineage(before[0])))) < 100


def test_one_record_is_found_from_anything_made_of_it(run):
    for start in [run.synth, run.distill, run.merge, run.root]:
        tree = walk_record(start, run.records[1].id)
        assert find(tree, "document")[0].title.startswith("deep/two.md: bytes 0-12")
    dropped = walk_record(run.merge, run.records[2].id)
    assert dropped.notes == ("dropped: too short",)
    passage = walk_record(run.merge, run.passages[0].id)
    assert (passage.kind, passage.children[0].kind) == ("passage", "document")
    for unknown in ["rec-nope", "pas-nope"]:
        with pytest.raises(DataError) as caught:
            walk_record(run.merge, unknown)
        assert caught.value.code == "data.no-such-record"


def test_a_record_of_a_foreign_file_has_no_chain(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "x"}\n{bad\n{"text": "y"}\n')
    record = Record((Message("assistant", "y"),))
    assert walk_record(path, record.id).notes == ("no chain is recorded",)
    write_records(tmp_path / "r.parquet", [record])
    assert walk_record(tmp_path / "r.parquet", record.id).origin == "unknown"
    assert walk_lineage(path).kind == "file"


def test_records_that_name_documents_and_records_show_them(run, tmp_path):
    document = run.passages[0].document_id
    from stillroom.records import Link

    record = Record(
        (Message("user", "x"),),
        {},
        Origin("synthetic", (Link("a.b", "", (document, "rec-1", "pas-none", "note")),)),
    )
    job = Job.start(run.root / "steps" / "more", "kind: synth.records\n")
    write_records(job.output / "records.parquet", [record])
    job.finish("records", parents=[make_parent("index", run.index, job.out)])
    step = walk_lineage(job.out).children[0].children[0]
    assert {(c.kind, c.title) for c in step.children} == {
        ("document", "one.md"),
        ("record", "rec-1"),
        ("missing", "pas-none"),
        ("reference", "note"),
    }


def test_a_passage_may_not_lead_out_of_the_documents(run, tmp_path):
    (tmp_path / "secret").write_text("s")
    path = run.index / "output/passages.jsonl"
    row = json.loads(path.read_text().split("\n")[0])
    row["location"]["path"] = "../secret"
    path.write_text(json.dumps(row) + "\n")
    document = find(walk_lineage(run.index), "document")[0]
    assert document.path == ""
    assert document.notes == ("its path leaves the folder of documents",)


def test_parents_resolve_next_to_the_child(tmp_path):
    folder = tmp_path / "run" / "child"
    assert resolve_parent(folder, Parent("x", "../sibling", "")) == tmp_path / "run" / "sibling"
    assert str(resolve_parent(folder, Parent("x", "/abs", ""))) == "/abs"


def test_the_tree_is_drawn_and_control_characters_are_not_sent(run):
    text = render_tree(walk_lineage(run.merge, examples=1))
    lines = text.split("\n")
    assert lines[0].startswith("merge  checkpoint  ")
    assert lines[1].startswith("└─ student  checkpoint")
    assert any("│  " in line and "bytes" in line for line in lines)
    evil = ProvenanceNode(
        "a\x1b[2J\n", "kind", children=(ProvenanceNode("b", "c", notes=("n\x07",)),)
    )
    assert render_tree(evil, ascii=True) == "a\\x1b[2J\\n  kind\n`- b  c\n      n\\x07\n"
    assert json.loads(json.dumps(walk_lineage(run.root).to_json()))["kind"] == "report"


def test_find_passages_reads_only_what_is_asked(run):
    assert find_passages(run.index, []) == {}
    found = find_passages(run.index, [run.passages[1].id, "pas-none"])
    assert found == {run.passages[1].id: run.passages[1]}
    assert find_passages(run.merge, ["pas-none"]) == {}
    assert read_artifact(run.index).kind == "index"
