import errno
import json
import os

import pytest
import torch
from safetensors import safe_open

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.writer import plan_tensors
from stillroom.errors import CheckpointError, ResourceError
from stillroom.testing import tiny_checkpoint

TENSORS = {
    "b.weight": torch.arange(24, dtype=torch.float32).reshape(6, 4),
    "a.bias": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
}


def write(folder, tensors=TENSORS, **settings):
    with CheckpointWriter(folder, config={"model_type": "llama"}, **settings) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return writer


def read_all(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_written_is_read_by_safetensors_itself(tmp_path):
    write(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_plan_or_not_and_any_order_give_the_same_bytes(tmp_path):
    one = write(tmp_path / "one")
    two = write(tmp_path / "two", dict(reversed(TENSORS.items())), plan=plan_tensors(TENSORS))
    assert read_all(tmp_path / "one") == read_all(tmp_path / "two")
    assert one.fingerprint == two.fingerprint == Checkpoint.open(tmp_path / "one").fingerprint


@pytest.mark.parametrize("planned", [True, False])
def test_shards_have_an_index_and_the_names_that_hugging_face_gives(tmp_path, planned):
    plan = plan_tensors(TENSORS) if planned else None
    write(tmp_path / "out", shard_size=50, plan=plan)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(TENSORS)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    checkpoint = Checkpoint.open(tmp_path / "out")
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_headers_are_aligned_to_eight_bytes(tmp_path):
    write(tmp_path / "out")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_dtype_casts_floats_only_and_the_config_says_so(tmp_path):
    write(tmp_path / "out", dtype=torch.float16)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.dtype("b.weight") is torch.float16
    assert checkpoint.dtype("count") is torch.int64
    assert checkpoint.config["dtype"] == "float16"


def test_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    write(tmp_path / "out")
    before = read_all(tmp_path / "out")
    with (
        pytest.raises(ZeroDivisionError),
        CheckpointWriter(tmp_path / "out", config={}) as writer,
    ):
        writer.add("x", torch.zeros(3 // 0))
    assert read_all(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    def open_writer():
        return CheckpointWriter(tmp_path / "out", config={}, plan=plan_tensors(tensors))

    tensors = {"a": torch.full((64, 8), 3.0), "b": torch.full((8,), 5.0)}
    with open_writer() as first:
        first.add("a", tensors["a"])
        with pytest.raises(ResourceError, match="another process is writing") as caught:
            open_writer().__enter__()
        assert caught.value.code == "resource.busy"
        first.add("b", tensors["b"])
    assert Checkpoint.open(tmp_path / "out").rehash() == first.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_larger_run_before_leaves_no_stale_shards(tmp_path):
    plan = plan_tensors(TENSORS)
    write(tmp_path / "out", shard_size=50, plan=plan, in_place=True)
    write(tmp_path / "out", plan=plan, in_place=True)
    assert sorted(read_all(tmp_path / "out")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "do",
    [
        lambda writer: writer.add("b.weight", torch.zeros(5, 4)),
        lambda writer: writer.add("other", torch.zeros(1)),
        lambda writer: [writer.add("count", TENSORS["count"]) for _ in range(2)],
        lambda writer: writer.add("count", TENSORS["count"]),
    ],
    ids=["shape", "name", "twice", "missing"],
)
def test_what_differs_from_the_plan_is_refused(tmp_path, do):
    with (
        pytest.raises(CheckpointError) as caught,
        CheckpointWriter(tmp_path / "out", config={}, plan=plan_tensors(TENSORS)) as writer,
    ):
        do(writer)
    assert caught.value.code == "checkpoint.plan"
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_a_resource_error(tmp_path, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceError) as caught:
        write(tmp_path / "out")
    assert caught.value.code == "resource.disk-full"
    assert not (tmp_path / "out").exists()


def test_keep_takes_only_bytes_that_are_what_they_were(tmp_path):
    plan = plan_tensors(TENSORS)
    digest = write(tmp_path / "out", plan=plan, in_place=True).digests["b.weight"]
    settings = {"config": {}, "plan": plan, "in_place": True}
    writer = CheckpointWriter(tmp_path / "out", **settings)
    writer.__enter__()
    assert writer.keep("b.weight", digest)
    assert not writer.keep("b.weight", "0" * 64)
    assert not writer.keep("other", digest)
    with pytest.raises(CheckpointError):
        writer.__exit__(None, None, None)


def test_tokenizer_and_card_go_along(tmp_path):
    tiny = tiny_checkpoint(tmp_path / "tiny")
    with CheckpointWriter(tmp_path / "out", config={}) as writer:
        writer.add("x", torch.zeros(3))
        copied = writer.copy_tokenizer(tiny)
        writer.write_card(
            "Title", "Body.", license="MIT AND Apache-2.0", base_models=["tiny"], tags=["merge"]
        )
    assert copied == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other\nlicense_name: MIT AND Apache-2.0" in card
    assert "base_model:\n- tiny" in card
    assert "# Title\n\nBody.\n" in card


@pytest.mark.parametrize("name", ["secret.txt", "chat_template.jinja", "blobs/secret"])
def test_a_link_out_of_a_checkpoint_is_not_copied(tmp_path, name):
    secret = tmp_path / "private" / name
    secret.parent.mkdir(parents=True)
    secret.write_text("a key")
    folder = tmp_path / "models--a--b" / "snapshots" / "main"
    tiny_checkpoint(folder)
    (folder / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(CheckpointError, match=f"is a link to .*{name}") as caught:
        write_with_tokenizer(folder, tmp_path / "out")
    assert caught.value.code == "checkpoint.link"
    assert not (tmp_path / "out").exists()


def test_blobs_that_are_a_link_themselves_are_not_copied(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret").write_text("a key")
    folder = tmp_path / "models--a--b" / "snapshots" / "main"
    tiny_checkpoint(folder)
    (tmp_path / "models--a--b" / "blobs").symlink_to(tmp_path / "private")
    (folder / "chat_template.jinja").symlink_to("../../blobs/secret")
    with pytest.raises(CheckpointError, match="is a link to"):
        write_with_tokenizer(folder, tmp_path / "out")


def test_links_within_a_checkpoint_and_of_caches_are_copied(tmp_path):
    tiny = tiny_checkpoint(tmp_path / "tiny")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot / "base", blobs):
        folder.mkdir(parents=True)
    (tiny / "tokenizer.json").rename(blobs / "0123abcd")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0123abcd")
    (tiny / "generation_config.json").rename(snapshot / "base" / "generation.json")
    (snapshot / "generation_config.json").symlink_to("base/generation.json")
    (tmp_path / "link").symlink_to(snapshot)
    copied = write_with_tokenizer(tmp_path / "link", tmp_path / "out")
    assert copied == ["generation_config.json", "tokenizer.json"]
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (blobs / "0123abcd").read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def write_with_tokenizer(source, out):
    with CheckpointWriter(out, config={}) as writer:
        writer.add("x", torch.zeros(3))
        return writer.copy_tokenizer(source)
