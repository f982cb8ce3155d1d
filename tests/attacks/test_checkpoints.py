"""Checkpoints made to break or deceive a reader: each is refused, and says why."""

import contextlib
import json
import os
import pickle
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.card import read_card
from stillroom.checkpoints.gguf import check_gguf
from stillroom.checkpoints.safetensors_format import read_header
from stillroom.errors import CheckpointError
from stillroom.models.local.causal_lm import load_causal_lm, load_tokenizer
from stillroom.rag.answer_selection.adapted_bert import load_tensors
from stillroom.testing import tiny_checkpoint

CONFIG = '{"model_type": "llama"}'


def make(folder, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(CONFIG)
    size = struct.pack("<Q", len(text) if length is None else length)
    (folder / "model.safetensors").write_bytes(size + text + data)
    return folder


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    return caught.value


def test_a_sound_one_is_read(tmp_path):
    assert Checkpoint.open(make(tmp_path, {"x": entry()})).names() == ["x"]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"x": entry(), "y": entry()}, "overlaps"),
        ({"x": entry(shape=(4,), offsets=(0, 16))}, "ends at byte"),
        ({"x": entry(shape=(1,), offsets=(4, 8))}, "unnamed"),
        ({"x": entry(shape=(1,), offsets=(0, 4))}, "belong to no tensor"),
        ({"x": entry(shape=(3,))}, "claims 8 bytes"),
        ({"x": entry(shape=(2**62, 2**62))}, "claims 8 bytes"),
        ({"x": entry(shape=(-2, -1))}, "the shape"),
        ({"x": entry(shape=(True, 2))}, "the shape"),
        ({"x": entry(shape=(1,) * 40)}, "the shape"),
        ({"x": entry(offsets=(8, 0))}, "the offsets"),
        ({"x": entry(offsets=(0, 8, 8))}, "the offsets"),
        ({"x": entry(offsets=(-8, 0))}, "the offsets"),
        ({"x": entry(offsets=(0, 8.0))}, "the offsets"),
        ({"x": entry() | {"more": 1}}, "is not dtype"),
        ({"x": [1]}, "is not dtype"),
        (b'{"x":' + json.dumps(entry()).encode() + b',"x":' + b"1}", "twice"),
        (b"[1]", "not JSON"),
        (b'{"x"', "not JSON"),
        (b'{"x": \xff\xfe}', "not JSON"),
        (b'{"x":' * 100_000, "not JSON"),
        (b'{"x":' + b"9" * 10_000 + b"}", "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lying_header_is_refused(tmp_path, header, what):
    error = refusal(make(tmp_path, header))
    assert error.code == "checkpoint.broken"
    assert what in str(error)


def test_an_unknown_type_is_refused_by_name(tmp_path):
    error = refusal(make(tmp_path, {"x": entry(dtype="Q4_K")}))
    assert error.code == "checkpoint.dtype"
    assert "'Q4_K'" in str(error)


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**64 - 1])
def test_a_lying_length_is_refused_before_anything_is_read(tmp_path, length):
    assert refusal(make(tmp_path, {"x": entry()}, length=length)).code == "checkpoint.broken"


def test_a_header_over_the_limit_is_refused(tmp_path):
    folder = make(tmp_path, {"x": entry()}, length=40_000_001)
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(200_000_000)
    assert "over 40000000" in str(refusal(folder))


CROWDED = {
    "tensors": ",".join(
        f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(150_000)
    ),
    "lists": '"x":[' + ",".join(["[]"] * 300_000) + "]",
    "numbers": '"x":[' + ",".join(["7"] * 1_500_000) + "]",
    "mappings": '"x":[' + ",".join(["{}"] * 140_000) + "]",
}


@pytest.mark.parametrize("kind", CROWDED)
def test_a_crowded_header_is_refused_before_objects_are_made_of_it(tmp_path, kind):
    text = b"{" + CROWDED[kind].encode() + b"}"
    folder = make(tmp_path, text, b"")
    error, peak = measure(refusal, folder)
    assert error.code == "checkpoint.broken"
    assert "more than 131072 tensors" in str(error)
    assert peak < 2 * len(text) + 1_000_000  # as read, and little more


def test_a_crowded_file_of_a_reader_is_refused_before_its_library_reads_it(tmp_path):
    make(tmp_path, b"{" + CROWDED["tensors"].encode() + b"}", b"")
    with pytest.raises(ValueError, match="more than 131072 tensors"):
        load_tensors(tmp_path / "model.safetensors")


def test_a_crowded_index_is_refused_before_objects_are_made_of_it(tmp_path):
    folder = make(tmp_path, {"x": entry()})
    text = ",".join(f'"{i}":"a.safetensors"' for i in range(530_000))
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map":{{{text}}}}}')
    error, peak = measure(refusal, folder)
    assert error.code == "checkpoint.index"
    assert "more than 524288 tensors" in str(error)
    assert peak < 2 * len(text) + 1_000_000


def measure(call, *args):
    """Return what a call gives, and the most bytes that Python's objects took meanwhile."""
    tracemalloc.start()
    try:
        return call(*args), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def text_of(value):
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (struct.pack("<QQ", 2**40, 0), "claims 1099511627776 tensors"),
        (struct.pack("<QQ", 0, 2**40), "claims 1099511627776 keys"),
        (struct.pack("<QQ", 0, 1), "ends within its header"),
        (struct.pack("<QQ", 0, 1) + text_of(b"a") + struct.pack("<I", 99), "type 99"),
        (
            struct.pack("<QQ", 0, 1) + text_of(b"a") + struct.pack("<IIQ", 9, 0, 2**23),
            "more than 4194304 elements",
        ),
        (
            struct.pack("<QQ", 0, 1) + text_of(b"a") + struct.pack("<IIQ", 9, 8, 2**62),
            "an array of 4611686018427387904 values",
        ),
        (struct.pack("<QQ", 0, 2) + text_of(b"a") + struct.pack("<IIQ", 9, 12, 2**61), "more than"),
        (
            struct.pack("<QQ", 0, 1) + text_of(b"a") + struct.pack("<II", 9, 9) + b"\1" * 8,
            "values of type 9",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_gguf_file_that_claims_too_much_is_refused_before_it_is_parsed(tmp_path, header, what):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + header)
    with pytest.raises(CheckpointError, match=what) as caught:
        check_gguf(path)
    assert caught.value.code == "checkpoint.gguf"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_gguf_bytes_pass_or_give_a_checkpoint_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + data)
    with contextlib.suppress(CheckpointError):  # any other exception fails the test
        check_gguf(path)
        _, keys = struct.unpack_from("<QQ", data)
        assert len(data) >= 16 + 13 * keys  # a key: two lengths or types, and a value


def test_a_truncated_file_is_refused(tmp_path):
    path = make(tmp_path, {"x": entry()}) / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refusal(tmp_path).code == "checkpoint.broken"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 250))
def test_any_bytes_give_entries_or_a_checkpoint_error(tmp_path_factory, data, length):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", length) + data)
    with contextlib.suppress(CheckpointError):  # any other exception fails the test
        entries = read_header(path).values()
        assert sum(entry.size_bytes for entry in entries) == len(data) - length


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/passwd.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "pytorch_model.bin",
        "x\0.safetensors",
        "",
        "..",
    ],
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, file):
    folder = make(tmp_path / "in", {"x": entry()})
    make(tmp_path, {"x": entry()})
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"metadata": {}, "weight_map": {"x": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(folder).code == "checkpoint.index"


@pytest.mark.parametrize(
    ("weight_map", "code"),
    [
        ({"x": "gone.safetensors"}, "checkpoint.missing-shard"),
        ({"x": "a.safetensors", "y": "a.safetensors"}, "checkpoint.index"),
        ({"y": "a.safetensors"}, "checkpoint.index"),
        ({"x": 3}, "checkpoint.index"),
        ({}, "checkpoint.index"),
        (["x"], "checkpoint.index"),
    ],
)
def test_an_index_that_does_not_match_its_shards_is_refused(tmp_path, weight_map, code):
    folder = make(tmp_path, {"x": entry()})
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(folder).code == code


def test_no_pickle_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "config.json").write_text(CONFIG)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb()}))
    assert refusal(tmp_path).code == "checkpoint.pickle"
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path, allow_pickle=True)
    assert caught.value.code == "checkpoint.pickle"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a device without end"])
@pytest.mark.timeout(10)
def test_a_config_that_is_no_file_neither_blocks_nor_fills_the_memory(tmp_path, kind):
    make(tmp_path, {"x": entry()})
    (tmp_path / "config.json").unlink()
    if kind == "a pipe":
        os.mkfifo(tmp_path / "config.json")
    else:
        (tmp_path / "config.json").symlink_to("/dev/zero")
    assert refusal(tmp_path).code == "checkpoint.config"


def test_a_broken_gguf_is_refused(tmp_path):
    pytest.importorskip("gguf")
    for data in (b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"not a model at all" * 10):
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(tmp_path / "x.gguf", cache=tmp_path / "cache")
        assert caught.value.code == "checkpoint.gguf"
        assert not list((tmp_path / "cache").rglob("*.safetensors"))


def tampered(folder, file, change):
    tiny_checkpoint(folder)
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))
    return folder


def test_a_config_of_ten_million_layers_is_refused_before_they_are_made(tmp_path):
    folder = tampered(tmp_path / "c", "config.json", lambda c: c.update(num_hidden_layers=10**7))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="claims 10000000 layers") as caught:
        load_causal_lm(folder)
    assert caught.value.code == "checkpoint.unloadable"
    assert time.process_time() - start < 5


@pytest.mark.parametrize("kind", ["normalizer", "decoder"])
def test_a_tokenizer_that_doubles_a_text_forty_times_is_refused(tmp_path, kind):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    steps = {"type": "Sequence", f"{kind}s": [double] * 40}
    folder = tampered(tmp_path / "c", "tokenizer.json", lambda c: c.update({kind: steps}))
    with pytest.raises(CheckpointError, match="times their length") as caught:
        load_tokenizer(folder)
    assert caught.value.code == "checkpoint.unloadable"


def test_a_tokenizer_of_a_version_that_doubles_a_text_is_refused(tmp_path):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    steps = {"type": "Sequence", "normalizers": [double] * 40}
    folder = tampered(tmp_path / "c", "tokenizer.json", lambda c: c.update(normalizer=steps))
    (folder / "tokenizer.json").rename(folder / "tokenizer.4.0.json")
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    config["fast_tokenizer_files"] = ["tokenizer.4.0.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="times their length"):
        load_tokenizer(folder)


def test_a_tokenizer_that_replaces_a_few_signs_is_opened(tmp_path):
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581\u2581"}
    steps = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x"}, space]}
    folder = tampered(tmp_path / "c", "tokenizer.json", lambda c: c.update(normalizer=steps))
    assert load_tokenizer(folder)("a b")["input_ids"]


def test_a_tokenizer_nested_without_end_is_refused(tmp_path):
    folder = tampered(tmp_path / "c", "tokenizer.json", lambda c: c.update(normalizer="@"))
    deep = '{"type":"Sequence","normalizers":[' * 100_000 + "]}" * 100_000
    text = (folder / "tokenizer.json").read_text().replace('"@"', deep)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert caught.value.code == "checkpoint.unloadable"


def test_a_pattern_of_a_tokenizer_that_does_not_end_is_an_error_with_a_name(tmp_path):
    step = {"type": "Split", "behavior": "Isolated", "invert": False}
    step["pattern"] = {"Regex": "(a+)+$"}
    folder = tampered(tmp_path / "c", "tokenizer.json", lambda c: c.update(pre_tokenizer=step))
    tokenizer = load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="gives up on a text"):
        tokenizer("a" * 40 + "!")


def test_a_card_that_unfolds_without_end_is_not_read(tmp_path):
    lines = ["a0: &a0 [x]", *(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]" for n in range(9))]
    bomb = "\n".join(["---", *lines, "license: *a9", "---"])
    doubled = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    for text in (
        bomb,
        "\n".join(["---", *doubled, "license: mit", "---"]),
        "---\nlicense: " + "[" * 20_000 + "\n---",
    ):
        (tmp_path / "README.md").write_text(text)
        start = time.process_time()
        assert read_card(tmp_path) == {}
        assert time.process_time() - start < 3
    shared = "---\nlicense: mit\nlanguage: &id001 [en]\nmore: {language: *id001}\n---\n"
    (tmp_path / "README.md").write_text(shared)  # PyYAML writes equal lists so
    assert read_card(tmp_path)["license"] == "mit"
