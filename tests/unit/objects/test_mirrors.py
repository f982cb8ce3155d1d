"""Mirrors of folders of objects: whole files, brought up to date under a lock, never half there."""

from __future__ import annotations

import errno
import fcntl
import json
import threading
import time
from pathlib import Path

import pytest

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, DataError, ResourceError
from stillroom.models.hub import resolve_checkpoint
from stillroom.objects import connect, find_address, find_remote, mirror_folder
from stillroom.provenance import find_artifact, make_parent
from stillroom.testing import tiny_checkpoint

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in this process, empty, and a cache of its own; ``fetched`` are the copies made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory, _ = connect("memory://papers")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    memory.fetched = []
    copy = type(memory).get_file

    def get_file(self, path, target, **more):
        memory.fetched.append(path.rsplit("/", 1)[-1])
        return copy(self, path, target, **more)

    monkeypatch.setattr(type(memory), "get_file", get_file)
    yield memory
    memory.store.clear()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_only_what_changed_is_copied_again(store):
    store.pipe_file("papers/one.md", b"one")
    store.pipe_file("papers/deep/two.md", b"two")
    folder = mirror_folder("memory://papers")
    assert sorted(store.fetched) == ["one.md", "two.md"]
    store.pipe_file("papers/one.md", b"ONE")  # of the same size
    assert mirror_folder("memory://papers/") == folder
    assert (folder / "one.md").read_bytes() == b"ONE"
    assert sorted(store.fetched) == ["one.md", "one.md", "two.md"]


@pytest.mark.parametrize("text", ["", '{"address": "mem', "[]", "{}"])
def test_a_list_of_copies_that_was_cut_is_made_again(store, text):
    store.pipe_file("papers/one.md", b"one")
    folder = mirror_folder("memory://papers")
    folder.with_name(f"{folder.name}.objects.json").write_text(text)  # by a loss of power
    assert find_address(folder / "one.md") == ""
    assert mirror_folder("memory://papers") == folder
    assert find_address(folder / "one.md") == "memory://papers/one.md"
    assert (folder / "one.md").read_bytes() == b"one"


def test_a_copy_that_was_damaged_here_is_made_again(store):
    store.pipe_file("papers/one.md", b"one")
    file = mirror_folder("memory://papers") / "one.md"
    file.write_bytes(b"eno")
    assert (mirror_folder("memory://papers") / "one.md").read_bytes() == b"one"


def test_what_vanished_there_vanishes_here_with_its_folder(store):
    store.pipe_file("papers/one.md", b"one")
    store.pipe_file("papers/deep/er/two.md", b"two")
    folder = mirror_folder("memory://papers")
    (folder / "deep" / ".two.md.99.tmp").write_text("of a download that was killed")
    store.rm_file("papers/deep/er/two.md")
    store.pipe_file("papers/deep", b"now an object")
    mirror_folder("memory://papers")
    assert names(folder) == ["deep", "one.md"]
    assert (folder / "deep").read_bytes() == b"now an object"


def test_a_second_job_waits_until_the_first_has_brought_the_mirror_up_to_date(store):
    store.pipe_file("papers/one.md", b"one")
    folder = mirror_folder("memory://papers")
    store.pipe_file("papers/one.md", b"changed")
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=mirror_folder, args=("memory://papers",))
        other.start()
        time.sleep(0.2)
        assert (folder / "one.md").read_bytes() == b"one"
    other.join()
    assert (folder / "one.md").read_bytes() == b"changed"


def test_a_mirror_without_weights_takes_none_from_one_with_them(store, tmp_path):
    made = tiny_checkpoint(tmp_path / "made")
    store.put(str(made), "papers/model", recursive=True)
    whole = resolve_checkpoint("memory://papers/model")
    partial = resolve_checkpoint("memory://papers/model", weights=False)
    assert (whole / "model.safetensors").is_file()
    assert not (partial / "model.safetensors").exists()
    assert Checkpoint.open(partial).fingerprint == Checkpoint.open(whole).fingerprint


def test_an_object_that_changes_while_it_is_copied_is_said(store, monkeypatch):
    store.pipe_file("papers/one.md", b"one")
    store.pipe_file("papers/two.md", b"two")
    copy = type(store).get_file

    def get_file(self, path, target, **more):
        copy(self, path, target, **more)
        if path.endswith("one.md"):
            store.pipe_file("papers/one.md", b"else")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", get_file)
        with pytest.raises(DataError) as caught:
            mirror_folder("memory://papers")
    assert caught.value.code == "object.changed"
    store.fetched.clear()
    assert (mirror_folder("memory://papers") / "one.md").read_bytes() == b"else"
    assert store.fetched == ["one.md"]  # the other was whole


def test_what_was_copied_before_an_error_is_not_copied_again(store, monkeypatch):
    for name in ("one", "two"):
        store.pipe_file(f"papers/{name}.md", name.encode())
    copy = type(store).get_file

    def fail(self, path, target, **more):
        if path.endswith("two.md"):
            Path(target).write_bytes(b"t")
            raise OSError(errno.ENOSPC, "no space left")
        copy(self, path, target, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", fail)
        with pytest.raises(ResourceError) as caught:
            mirror_folder("memory://papers")
    assert caught.value.code == "resource.disk-full"
    store.fetched.clear()
    assert names(mirror_folder("memory://papers")) == ["one.md", "two.md"]
    assert store.fetched == ["two.md"]


def test_an_object_below_another_is_refused_by_name(store):
    store.store["/papers/one"] = _memory_file(store, b"one")
    store.store["/papers/one/two"] = _memory_file(store, b"two")
    with pytest.raises(DataError, match="below another object") as caught:
        mirror_folder("memory://papers")
    assert caught.value.code == "object.name"


def _memory_file(store, data):
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(store, "", data)


def test_addresses_of_what_lies_in_a_mirror(store, tmp_path):
    store.pipe_file("papers/output/one.md", b"one")
    folder = mirror_folder("memory://papers")
    assert find_address(folder) == "memory://papers"
    assert find_address(folder / "output" / "one.md") == "memory://papers/output/one.md"
    assert (
        find_address(mirror_folder("memory://papers/output/one.md"))
        == "memory://papers/output/one.md"
    )
    assert find_address(tmp_path) == ""
    assert find_remote(Path("/")) is None


def test_a_file_at_the_root_of_the_disk_has_a_parent(tmp_path):
    assert make_parent("records", Path("/none.jsonl"), tmp_path / "run").path == "/none.jsonl"


def test_weights_are_followed_there_as_they_are_here(store, tmp_path):
    """A folder's other safetensors (an optimizer's, an adapter's) are no weights of its own."""
    made = tiny_checkpoint(tmp_path / "made")
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    (made / "optimizer.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    store.put(str(made), "papers/model", recursive=True)
    there = Checkpoint.open(resolve_checkpoint("memory://papers/model", weights=False))
    assert there.names() == Checkpoint.open(made).names()
    assert there.fingerprint == Checkpoint.open(made).fingerprint


def test_an_index_is_held_to_what_lies_there(store, tmp_path):
    made = tiny_checkpoint(tmp_path / "made")
    names = Checkpoint.open(made).names()
    (made / "model.safetensors").rename(made / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    store.put(str(made), "papers/model", recursive=True)
    there = Checkpoint.open(resolve_checkpoint("memory://papers/model", weights=False))
    assert there.fingerprint == Checkpoint.open(made).fingerprint
    index["weight_map"][names[0]] = "model-2.safetensors"
    store.pipe_file("papers/model/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(resolve_checkpoint("memory://papers/model", weights=False))
    assert caught.value.code == "checkpoint.missing-shard"
    store.rm_file("papers/model/model-1.safetensors")
    store.rm_file("papers/model/model.safetensors.index.json")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(resolve_checkpoint("memory://papers/model", weights=False))
    assert caught.value.code == "checkpoint.no-weights"


def test_an_artifact_is_found_here_and_there(store, tmp_path):
    told = {"format": 1, "kind": "records", "files": [], "parents": [], "origin": {"kind": "human"}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "artifact.json").write_text(json.dumps(told))
    store.put(str(tmp_path / "run"), "papers/run", recursive=True)
    here = find_artifact(str(tmp_path / "run"))
    assert here is not None
    assert find_artifact("memory://papers/run/") == here
    assert find_artifact("memory://papers/no") is None
    assert find_artifact("hub:org/name") is None
