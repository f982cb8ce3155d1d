"""Encoders in 8-bit integers: what they are kept by, shared by, and refuse."""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.unit.models.encoders.test_numpy_bert import (  # noqa: F401  # a fixture
    TEXTS,
    change,
    folder,
    make_mpnet,
)

from stillroom.errors import CheckpointError, MissingExtraError, ResourceError
from stillroom.models import open_embedder
from stillroom.models.encoders import int8_layers
from stillroom.models.encoders.numpy_bert import open_bert
from stillroom.models.hub import LARGE_EMBEDDER

pytestmark = pytest.mark.skipif(
    not int8_layers.can_quantize(), reason="onnx and onnxruntime are not installed"
)
IDS = [2, 5, 7, 9, 3]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the folder of quantized encoders."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


@pytest.fixture
def built(monkeypatch):
    """Return a list that grows with each encoder that is quantized anew."""
    numbers, build = [], int8_layers._Graph.build
    monkeypatch.setattr(
        int8_layers._Graph, "build", lambda self, names: numbers.append(1) or build(self, names)
    )
    return numbers


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_states_are_near_those_of_float32(folder, kind):  # noqa: F811
    if kind == "mpnet":
        make_mpnet(folder)
    bert = open_bert(folder)
    exact, rounded = bert.states(IDS).ravel(), bert.quantize().states(IDS).ravel()
    assert exact.tobytes() != rounded.tobytes()
    assert exact @ rounded > 0.98 * np.linalg.norm(exact) * np.linalg.norm(rounded)


def test_quantized_layers_are_shared_and_kept(folder, cache, built):  # noqa: F811
    first = open_bert(folder).quantize()
    assert open_bert(folder).quantize()._quantized is first._quantized
    states = first.states(IDS).tobytes()
    del first
    assert open_bert(folder).quantize().states(IDS).tobytes() == states
    assert (len(built), len(list(cache.iterdir()))) == (1, 1)


def test_settings_and_types_tell_cached_encoders_apart(folder, cache):  # noqa: F811
    bert = open_bert(folder)
    states = {bert.quantize().states(IDS).tobytes()}
    name = "encoder.layer.0.output.dense.weight"
    narrow, wide = (np.ones(shape, np.float32) / 9 for shape in ((2, 96), (48, 2)))
    same_bytes = narrow.view(np.float16).reshape(4, 96), wide.view(np.float16)
    for pair in ((narrow, wide), same_bytes):
        states.add(bert.adapt({name: pair}, 1.0, to_int8=True).states(IDS).tobytes())
    for settings in ({"num_attention_heads": 6}, {"layer_norm_eps": 0.5}, {"num_hidden_layers": 2}):
        change(folder / "config.json", **settings)
        states.add(open_bert(folder).quantize().states(IDS).tobytes())
    assert len(states) == len(list(cache.iterdir())) == 6


def test_a_damaged_file_is_written_again(folder, cache, built):  # noqa: F811
    states = open_bert(folder).quantize().states(IDS).tobytes()
    (path,) = cache.iterdir()
    data = path.read_bytes()
    for damaged in (b"", data[:40], data[:-1], data[:-1] + b"\x00\x00"):
        path.write_bytes(damaged)
        assert open_bert(folder).quantize().states(IDS).tobytes() == states
        assert path.read_bytes() == data
    assert len(built) == 5


def test_a_cache_that_can_only_be_read_is_used(folder, built, monkeypatch):  # noqa: F811
    def refuse(path):
        raise PermissionError(path)

    open_bert(folder).quantize()
    monkeypatch.setattr(os, "utime", refuse)
    open_bert(folder).quantize()
    assert len(built) == 1


@pytest.mark.parametrize("error", [ResourceError("the disk is full"), PermissionError("no")])
def test_a_cache_that_cannot_be_written_costs_time_alone(
    folder,  # noqa: F811
    cache,
    monkeypatch,
    error,
):
    def refuse(path, model):
        raise error

    monkeypatch.setattr(int8_layers, "_write_cached", refuse)
    assert np.isfinite(open_bert(folder).quantize().states(IDS)).all()
    assert not cache.exists()


def test_the_encoders_used_last_are_kept(cache):
    model = b"model"
    written = [cache / f"{number}.onnx" for number in range(8)]
    for age, path in enumerate(written):
        int8_layers._write_cached(path, model)
        os.utime(path, (age, age))
    assert {path for path in written if path.exists()} == set(written[2:])
    assert int8_layers._read_cached(written[2]) == model
    assert written[2].stat().st_mtime > len(written)
    assert written[3].read_bytes() == hashlib.blake2b(model, digest_size=32).digest() + model


def test_threads_read_side_by_side(folder):  # noqa: F811
    make_mpnet(folder)
    bert = open_bert(folder).quantize()
    many = [list(range(5, 5 + length)) for length in range(2, 30)]
    alone = [bert.states(ids).tobytes() for ids in many]
    with ThreadPoolExecutor(4) as threads:
        assert [each.tobytes() for each in threads.map(bert.states, many)] == alone


def test_an_embedder_in_integers_gives_the_same_bytes_on_any_number_of_threads(
    folder,  # noqa: F811
):
    make_mpnet(folder)
    exact = open_embedder(str(folder))
    rows = []
    for threads in (1, 2):
        rounded = open_embedder(str(folder), dtype="int8", num_threads=threads)
        rows += [rounded.embed(TEXTS, kind=kind).tobytes() for kind in ("query", "passage")]
        assert rounded.fingerprint != exact.fingerprint
        assert rounded._torch is None
    assert len(set(rows)) == 1
    found = np.frombuffer(rows[0], np.float32).reshape(len(TEXTS), -1)
    assert (np.sum(found * exact.embed(TEXTS, kind="passage"), axis=1) > 0.95).all()


def test_integers_need_a_plain_encoder_on_a_cpu(folder):  # noqa: F811
    with pytest.raises(CheckpointError, match="8-bit integers need") as caught:
        open_embedder(str(folder), dtype="int8", device="cuda")
    assert caught.value.code == "checkpoint.not-an-embedder"


def test_the_large_embedder_is_its_base_in_integers(folder, tmp_path, monkeypatch):  # noqa: F811
    make_mpnet(folder)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "all-mpnet-base-v2").symlink_to(folder)
    monkeypatch.setenv("STILLROOM_MODELS", str(tmp_path / "models"))
    expected = open_embedder(str(folder), dtype="int8").fingerprint
    assert open_embedder(LARGE_EMBEDDER).fingerprint == expected
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="8-bit integers needs the package 'onnxruntime'"):
        open_bert(folder).quantize()


@pytest.mark.parametrize("columns", [1, 3])
def test_a_bias_by_distance_of_other_heads_is_left_to_transformers(folder, columns):  # noqa: F811
    make_mpnet(folder)
    path, name = folder / "model.safetensors", "encoder.relative_attention_bias.weight"
    tensors = load_file(path)
    tensors[name] = tensors[name][:, :columns].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    assert open_bert(folder) is None
    change(folder / "config.json", num_attention_heads=-4)
    assert open_bert(folder) is None
