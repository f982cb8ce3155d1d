import importlib
import json
import os
import shutil

import pytest

from stillroom.errors import DataError
from stillroom.provenance import verify_artifact, verify_signed
from stillroom.provenance.artifact import digest_claim, digest_record


def found(path, **settings):
    return {(finding.path, finding.kind) for finding in verify_artifact(path, **settings)}


def rewrite(folder, change):
    """Edit artifact.json as a forger who knows the digests of what it states."""
    path = folder / "artifact.json"
    data = json.loads(path.read_text())
    change(data)
    data["claim"] = digest_claim(data)
    data["record"] = digest_record(data)
    path.write_text(json.dumps(data))


def test_a_sound_run_has_no_findings(run, tmp_path):
    assert verify_artifact(run.root) == []
    shutil.move(run.root, tmp_path / "moved")
    assert verify_artifact(tmp_path / "moved") == []
    assert verify_artifact(tmp_path / "moved" / "steps" / "merge") == []


def test_each_changed_missing_and_extra_file_is_named(run):
    (run.distill / "output/model.safetensors").write_bytes(b"WEIGHTS")
    (run.synth / "output/dropped.jsonl").unlink()
    (run.synth / "output/new").mkdir()
    (run.synth / "output/new/extra.txt").write_text("x")
    (run.index / "output/documents.jsonl").write_text("longer" * 1000)
    (run.merge / "recipe.yaml").write_text("kind: other\n")
    assert found(run.root) == {
        ("steps/distill/output/model.safetensors", "changed"),
        ("steps/synth/output/dropped.jsonl", "missing"),
        ("steps/synth/output/new/extra.txt", "extra"),
        ("steps/index/output/documents.jsonl", "changed"),
        ("steps/merge/recipe.yaml", "changed"),
    }
    assert found(run.merge) == {
        ("../distill/output/model.safetensors", "changed"),
        ("../synth/output/dropped.jsonl", "missing"),
        ("../synth/output/new/extra.txt", "extra"),
        ("../index/output/documents.jsonl", "changed"),
        ("recipe.yaml", "changed"),
    }
    assert found(run.merge, parents=False) == {("recipe.yaml", "changed")}


def test_files_that_depend_on_the_clock_are_verified_too(run):
    (run.root / "recipe.yaml").write_text("kind: flaw\n")
    (run.root / "steps.json").unlink()
    assert found(run.root) == {("recipe.yaml", "changed"), ("steps.json", "missing")}
    (run.synth / "recipe.yaml").unlink()
    assert ("recipe.yaml", "missing") in found(run.synth)


def test_an_edited_artifact_file_is_noticed(run):
    rewrite(run.merge, lambda data: data.update(digest="0" * 64))
    assert ("artifact.json", "changed") in found(run.merge)
    rewrite(run.distill, lambda data: data["files"].clear())
    kinds = found(run.distill)
    assert ("artifact.json", "changed") in kinds
    assert ("output/model.safetensors", "extra") in kinds


def test_every_file_of_an_unsigned_run_is_covered_or_named(run):
    (run.merge / "units").mkdir()
    (run.merge / "units/notes.jsonl").write_text("added later")
    files = sorted(path for path in run.root.rglob("*") if path.is_file())
    assert any(path.name == "events.jsonl" for path in files)
    for path in files:
        before = verify_signed(run.root)
        data = path.read_bytes()
        path.write_bytes(b"[" + data)
        after = verify_signed(run.root)
        shown = path.relative_to(run.root).as_posix()
        assert after.findings or any(line.startswith(f"{shown} has") for line in before.uncovered)
        path.write_bytes(data)
    assert before.findings == ()
    assert before.uncovered == ("steps/merge/units/notes.jsonl has no digest or signature",)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["host"].update(cores=64),
        lambda data: data.update(created="2020-01-01T00:00:00+00:00"),
        lambda data: data.update(timed_files=[]),
        lambda data: data.update(record="0" * 64),
        lambda data: data.update(record=None),
    ],
    ids=["host", "time", "timed files", "record", "no text"],
)
def test_what_no_claim_covers_is_covered_by_the_record(run, change):
    path = run.merge / "artifact.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert ("steps/merge/artifact.json", "changed") in found(run.root)


def test_an_artifact_of_an_earlier_version_says_what_it_does_not_cover(run):
    path = run.merge / "artifact.json"
    data = json.loads(path.read_text())
    del data["record"]
    path.write_text(json.dumps(data))
    told = verify_signed(run.root)
    what = "has no digest that covers its time, host and timed files"
    assert told.findings == ()
    assert told.uncovered == (f"steps/merge/artifact.json {what}",)


def test_a_name_that_stands_twice_in_an_artifact_file_is_refused(run):
    path = run.merge / "artifact.json"
    path.write_text(path.read_text().replace("{", '{"seed": 7,', 1))
    assert found(run.merge, parents=False) == {("artifact.json", "broken")}


def test_a_step_that_lost_its_artifact_file_is_a_difference(run):
    (run.synth / "artifact.json").unlink()
    assert ("steps/synth", "missing") in found(run.root)


def test_locks_are_no_place_to_hide_things(run):
    (run.merge / ".lock").touch()
    assert verify_signed(run.merge).uncovered == ()
    (run.merge / ".lock").write_text("hidden")
    assert verify_signed(run.merge).uncovered == (".lock has no digest or signature",)


def test_a_parent_made_anew_is_noticed_at_the_child(run):
    (run.distill / "output/model.safetensors").write_bytes(b"other")
    from stillroom.provenance.artifact import list_files

    def renew(data):
        data["files"] = [[e.path, e.size_bytes, e.digest] for e in list_files(run.distill)]

    rewrite(run.distill, renew)
    from stillroom.provenance import read_artifact

    digest = read_artifact(run.distill).digest
    rewrite(run.distill, lambda data: data.update(digest=digest))
    assert verify_artifact(run.distill) == []
    assert found(run.merge) == {("../distill", "changed")}
    assert found(run.root) == {("steps/distill", "changed")}


def test_a_missing_step_of_a_run_is_a_difference_and_a_missing_neighbor_is_an_open_end(run):
    shutil.rmtree(run.index)
    assert ("steps/index", "missing") in found(run.root)
    shutil.rmtree(run.documents)
    told = verify_signed(run.synth)
    assert told.findings == ()
    assert any("../index is not here and was not compared" in line for line in told.open_ends)


def test_a_far_file_is_compared_by_its_digest(run, tmp_path):
    far = tmp_path / "far.jsonl"
    far.write_text("x")
    rewrite(
        run.merge,
        lambda data: data["parents"].append(
            {"role": "seeds", "kind": "", "path": str(far), "digest": "0" * 64}
        ),
    )
    assert [finding.kind for finding in verify_artifact(run.merge)] == ["changed"]


@pytest.mark.parametrize(
    "path",
    [
        "../../secret",
        "/etc/passwd",
        "output/../../secret",
        "output/./x",
        "output//x",
        "output\\..\\x",
        "",
        "a\0b",
        7,
        None,
        ["x"],
    ],
)
def test_paths_that_leave_the_folder_are_refused_unread(run, tmp_path, path, monkeypatch):
    (run.root.parent / "secret").write_text("s")
    rewrite(run.merge, lambda data: data["files"].append([path, 1, "0" * 64]))
    opened = []
    module = importlib.import_module("stillroom.provenance.verify")

    real = module.digest_file
    monkeypatch.setattr(module, "digest_file", lambda file: opened.append(file) or real(file))
    assert ("artifact.json", "unsafe") in found(run.merge)
    assert all(file.is_relative_to(run.root) for file in opened)


@pytest.mark.parametrize("path", ["../../..", "..", ".", "../../documents", "output/../../../x"])
def test_parents_that_are_no_neighbors_are_refused(run, path):
    rewrite(
        run.merge,
        lambda data: data["parents"].append(
            {"role": "x", "kind": "", "path": path, "digest": "0" * 64}
        ),
    )
    assert found(run.merge) == {("artifact.json", "unsafe")}


def test_links_are_never_followed(run, tmp_path):
    weights = run.merge / "output/model.safetensors"
    aside = tmp_path / "aside"
    shutil.move(weights, aside)
    weights.symlink_to(aside)
    (run.merge / "output/loop").symlink_to(run.merge)
    assert found(run.merge, parents=False) == {
        ("output/model.safetensors", "link"),
        ("output/loop", "link"),
    }
    shutil.move(run.distill / "output", tmp_path / "out")
    (run.distill / "output").symlink_to(tmp_path / "out")
    assert ("output/model.safetensors", "link") in found(run.distill, parents=False)
    shutil.move(run.index, tmp_path / "moved-index")
    run.index.symlink_to(tmp_path / "moved-index")
    assert ("../index", "link") in found(run.synth)


def test_pipes_and_folders_in_place_of_files_do_not_hang(run):
    weights = run.merge / "output/model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    assert found(run.merge, parents=False) == {("output/model.safetensors", "link")}
    weights.unlink()
    weights.mkdir()
    assert found(run.merge, parents=False) == {("output/model.safetensors", "link")}
    (run.merge / "recipe.yaml").unlink()
    os.mkfifo(run.merge / "recipe.yaml")
    assert ("recipe.yaml", "link") in found(run.merge, parents=False)
    (run.distill / "artifact.json").unlink()
    os.mkfifo(run.distill / "artifact.json")
    assert ("../distill/artifact.json", "link") in found(run.merge)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 1, "kind": "records"}',
        '{"format": 1, "kind": "alien", "files": [], "parents": []}',
        '{"format": 1, "kind": "records", "files": [3], "parents": []}',
        '{"format": 1, "kind": "records", "files": [], "parents": [{}]}',
        '{"format": 1, "kind": "records", "files": 3, "parents": []}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_broken_artifact_file_is_a_finding(run, text):
    (run.distill / "artifact.json").write_text(text)
    assert ("../distill/artifact.json", "broken") in found(run.merge)
    assert ("artifact.json", "broken") in found(run.distill)


def test_strange_values_in_entries_do_not_break_it(run):
    def spoil(data):
        data["files"] = [
            ["output/model.safetensors", "six", 7],
            ["output/model.safetensors", 6, ""],
        ]
        data["parents"] = [
            {"role": 3, "kind": None, "path": "hub:x/y", "digest": None},
            {"role": "x", "kind": "", "path": "../distill", "digest": None},
        ]

    rewrite(run.merge, spoil)
    assert ("output/model.safetensors", "changed") in found(run.merge)


def test_circles_end_and_no_artifact_is_an_error(run, tmp_path):
    rewrite(
        run.index,
        lambda data: data["parents"].append(
            {"role": "loop", "kind": "checkpoint", "path": "../merge", "digest": ""}
        ),
    )
    assert {finding.layer for finding in verify_artifact(run.merge)} == {"chain"}
    with pytest.raises(DataError) as caught:
        verify_artifact(tmp_path)
    assert caught.value.code == "data.not-an-artifact"


def test_findings_are_plain_json(run):
    (run.merge / "output/x").write_text("x")
    (finding,) = verify_artifact(run.merge)
    assert finding.to_json() == {
        "path": "output/x",
        "what": "is not listed in artifact.json",
        "kind": "extra",
        "layer": "output",
    }
