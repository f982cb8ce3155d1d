import json

import pytest
import torch

import stillroom.checkpoints.gguf as dequantize
from stillroom.checkpoints import Checkpoint, dequantize_gguf
from stillroom.errors import CheckpointError, MissingExtraError
from stillroom.testing import tiny_checkpoint

gguf = pytest.importorskip("gguf")

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf(source, path, pre="smollm", kind=None, without="no tensor", parts=0):
    """Write a tiny checkpoint as llama.cpp's converter does: renamed, q and k permuted."""
    checkpoint = Checkpoint.open(source)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(checkpoint.config["vocab_size"])
    if parts:
        writer.add_uint16("split.count", parts)
    add_tokenizer(writer, json.loads((source / "tokenizer.json").read_text()), pre)
    for name in checkpoint.names():
        if without in name:
            continue
        array = checkpoint.tensor(name).numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = 4 if "q_proj" in name else 2
            array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)
        stored = gguf.GGMLQuantizationType.F32
        if kind is not None and array.ndim == 2:
            stored = kind
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(rename(name), array, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rename(name):
    if name.startswith("model.layers."):
        _, _, layer, part = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{PARTS[part]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")


def add_tokenizer(writer, tokenizer, pre):
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {added["content"] for added in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def test_every_tensor_comes_back_and_the_tie_is_kept(tiny, tmp_path):
    path = to_gguf(tiny, tmp_path / "tiny.gguf")
    before, after = Checkpoint.open(tiny), Checkpoint.open(path, cache=tmp_path / "cache")
    assert after.names() == before.names()
    assert after.is_tied
    for name in before.names():
        assert torch.equal(after.tensor(name), before.tensor(name)), name
    assert after.license == "apache-2.0"
    assert after.parameters == before.parameters


def test_tokenizer_template_and_end_of_turn_come_along(tiny, tmp_path):
    from transformers import AutoTokenizer

    folder = dequantize_gguf(to_gguf(tiny, tmp_path / "tiny.gguf"), tmp_path / "cache")
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny)
    for text in ("The old house", "<|im_start|>user\nHi é 世界<|im_end|>\n"):
        assert ours(text).input_ids == theirs(text).input_ids
    assert ours.eos_token_id == 2
    assert ours.model_max_length == 512
    assert ours.chat_template.startswith("{% for message")
    digits = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 1847")
    assert [piece for piece, _ in digits] == ["in", "Ġ", "1", "8", "4", "7"]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2


def test_the_card_says_which_quantization_it_was(tiny, tmp_path):
    path = to_gguf(tiny, tmp_path / "q8.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    folder = dequantize_gguf(path, tmp_path / "cache")
    card = (folder / "README.md").read_text()
    assert "dequantized-from-q8_0" in card
    assert "they are not the original weights" in card
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = Checkpoint.open(tiny).tensor(name), Checkpoint.open(folder).tensor(name)
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=2e-3)


def test_it_is_done_once_and_the_name_of_the_file_does_not_matter(tiny, tmp_path, monkeypatch):
    path = to_gguf(tiny, tmp_path / "tiny.gguf")
    first = dequantize_gguf(path, tmp_path / "cache")

    def never(*args):
        raise AssertionError("converted twice")

    monkeypatch.setattr(dequantize, "_convert", never)
    assert dequantize_gguf(path, tmp_path / "cache") == first
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]


def test_a_file_that_lacks_a_tensor_is_refused(tiny, tmp_path):
    path = to_gguf(tiny, tmp_path / "holed.gguf", without="layers.1.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\.mlp\.up_proj\.weight"):
        dequantize_gguf(path, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "dequantized").iterdir())


def test_one_part_of_a_split_file_is_refused(tiny, tmp_path):
    path = to_gguf(tiny, tmp_path / "a-00001-of-00002.gguf", without="layers.1", parts=2)
    with pytest.raises(CheckpointError, match=r"one of 2 parts .*llama-gguf-split --merge"):
        dequantize_gguf(path, tmp_path / "cache")
    whole = to_gguf(tiny, tmp_path / "b-00001-of-00001.gguf", parts=1)
    assert dequantize_gguf(whole, tmp_path / "cache").is_dir()


def test_an_unknown_rule_of_splitting_words_is_refused(tiny, tmp_path):
    path = to_gguf(tiny, tmp_path / "odd.gguf", pre="no-such-rule")
    with pytest.raises(CheckpointError) as caught:
        dequantize_gguf(path, tmp_path / "cache")
    assert caught.value.code == "checkpoint.gguf-tokenizer"
    assert not list((tmp_path / "cache" / "dequantized").iterdir())


def test_without_the_package_the_extra_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(dequantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"stillroom\[gguf\]"):
        dequantize_gguf(tmp_path / "x.gguf", tmp_path / "cache")
