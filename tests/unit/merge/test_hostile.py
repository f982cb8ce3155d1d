"""What goes in may be broken, degenerate or hostile: a defined result or a clear error."""

import json
import struct

import numpy as np
import pytest
import torch
from tests.unit.merge.conftest import fine_tune, plain_methods

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.errors import CheckpointError, StillroomError
from stillroom.merge import METHODS, merge_checkpoints
from stillroom.testing import tiny_checkpoint

NAMES = plain_methods()
NORM = "model.norm.weight"


def parents_for(name, tunes):
    method = METHODS.get(name)
    return tunes[: max(method.min_models, min(2, method.max_models))]


def base_for(name, base):
    return base if METHODS.get(name).needs_base else None


def rewritten(source, target, change):
    """Copy a checkpoint, its tensors changed by ``change(name, tensor)``."""
    opened = Checkpoint.open(source)
    with CheckpointWriter(target, config=opened.config) as writer:
        for name in opened.names():
            writer.add(name, change(name, opened.tensor(name).clone()))
        writer.copy_tokenizer(opened.folder)
    return target


@pytest.mark.parametrize("name", NAMES)
def test_a_parent_that_is_not_finite_is_named_and_nothing_is_left(name, family, tmp_path):
    base, tunes = family

    def spoil(tensor_name, tensor):
        if tensor_name == NORM:
            tensor[1] = float("nan")
        return tensor

    guilty = rewritten(tunes[0], tmp_path / "guilty", spoil)
    models = [guilty, *parents_for(name, tunes)[1:]]
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints(name, base_for(name, base), models, tmp_path / "out")
    assert caught.value.code == "merge.not-finite"
    assert "guilty" in str(caught.value)
    assert NORM in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_zeros_stay_zeros(name, family, tmp_path):
    base, _ = family
    zeros = rewritten(base, tmp_path / "zeros", lambda _, tensor: torch.zeros_like(tensor))
    count = len(parents_for(name, [zeros] * 3))
    merge_checkpoints(name, base_for(name, zeros), [zeros] * count, tmp_path / "out")
    for each in Checkpoint.open(tmp_path / "out").names():
        assert not Checkpoint.open(tmp_path / "out").tensor(each).any()


def spoil_header(path, change):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = change(json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def overlap(header):
    first, second = [name for name in sorted(header) if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    header[second] = header[first] | {"data_offsets": header[first]["data_offsets"]}
    return header


def lie(header):
    name = next(name for name in sorted(header) if name != "__metadata__")
    header[name]["shape"] = [1_000_000_000, 1_000_000_000]
    return header


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-17]),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: spoil_header(path, overlap),
        lambda path: spoil_header(path, lie),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["cut", "length", "overlap", "shape", "empty", "missing"],
)
def test_a_broken_file_is_an_error_and_nothing_is_left(spoil, family, tmp_path):
    _, tunes = family
    copy = rewritten(tunes[0], tmp_path / "copy", lambda _, tensor: tensor)
    spoil(copy / "model.safetensors")
    with pytest.raises(StillroomError) as caught:
        merge_checkpoints("linear", None, [tunes[1], copy], tmp_path / "out")
    assert caught.value.code.startswith("checkpoint.")
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(tmp_path):
    from stillroom.testing import tiny_checkpoint as tiny

    whole = tiny(tmp_path / "whole", seed=1)
    merge_checkpoints("linear", None, [whole], tmp_path / "shards", shard_size=50_000)
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints("linear", None, [tmp_path / "shards", whole], tmp_path / "out")
    assert shard.name in str(caught.value)


def test_a_file_that_shrinks_meanwhile_is_told(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", seed=0)
    tune = fine_tune(base, tmp_path / "tune", 1)
    opened = Checkpoint.open(tune)
    path = tune / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    last = max(opened.names(), key=lambda name: opened.entry(name).start)
    with pytest.raises(CheckpointError) as caught:
        opened.read(last, 0, opened.entry(last).rows)
    assert caught.value.code == "checkpoint.broken"


def test_the_result_over_a_parent_is_the_sum_of_both_and_the_parent_stays(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", seed=0)
    tune = fine_tune(base, tmp_path / "tune", 1)
    before = Checkpoint.open(tune).fingerprint
    merge_checkpoints("linear", None, [base, tune], tmp_path / "out")
    assert Checkpoint.open(tune).fingerprint == before
    left = Checkpoint.open(base).tensor(NORM).numpy()
    right = Checkpoint.open(tune).tensor(NORM).numpy()
    merged = Checkpoint.open(tmp_path / "out").tensor(NORM).numpy()
    np.testing.assert_allclose(merged, (left + right) / 2, rtol=1e-6)
