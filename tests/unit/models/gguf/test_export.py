"""GGUF files: what llama.cpp computes from them is what transformers computes from the folder."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, normalizers, trainers
from tokenizers.models import BPE

from stillroom.checkpoints import Checkpoint, dequantize_gguf
from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, DataError
from stillroom.models.gguf.comparison import compare_gguf
from stillroom.models.gguf.export import export_gguf
from stillroom.models.local.runtime import silence_transformers
from stillroom.provenance import Artifact
from stillroom.testing import tiny_checkpoint

gguf = pytest.importorskip("gguf")
PROBES = ("The old still turns wine " * 12, "In 1847: 320 sacks,  it's Größe\n\n 日本", " a b")
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "llama": ("LlamaConfig", {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "llama3 positions": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "linear positions": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "yarn positions": (
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
}


def make(folder: Path, kind: str) -> Path:
    """Write a random model of an architecture, with a tokenizer of ours."""
    import transformers

    tiny = tiny_checkpoint(folder / "tokenizer")
    named, settings = KINDS[kind]
    rows = Checkpoint.open(tiny).shape("model.embed_tokens.weight")[0]
    config = getattr(transformers, named)(**{**COMMON, "vocab_size": rows + 6, **settings})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:  # norms of one and biases of zero would hide where they go
                tensor.copy_(float("norm" in name) + 0.1 * torch.randn_like(tensor))
    with silence_transformers():
        model.save_pretrained(folder / kind)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / kind / name)
    return folder / kind


@pytest.mark.parametrize("kind", KINDS)
def test_llamacpp_computes_what_transformers_computes(tmp_path, kind):
    pytest.importorskip("xllamacpp")
    folder = make(tmp_path, kind)
    told = export_gguf(folder, tmp_path / "model.gguf")
    found = compare_gguf(folder, told.path, told.type, probes=PROBES)
    assert found.texts_alike == found.texts == 3
    assert found.template == "alike"
    assert found.same_token == found.positions > 12
    assert found.mean_difference < 0.005  # the cache of keys and values is float16
    assert told.type == "f32"
    assert any("6 embedding rows have no token" in note for note in told.notes)


@pytest.mark.parametrize(("kind", "near"), [("bf16", 0.1), ("f16", 0.01), ("q8_0", 0.1)])
def test_narrow_types_differ_by_rounding_alone(tmp_path, kind, near):
    pytest.importorskip("xllamacpp")
    folder = tiny_checkpoint(tmp_path / "model")
    told = export_gguf(folder, tmp_path / "model.gguf", type=kind)
    assert compare_gguf(folder, told.path, told.type, probes=PROBES[:1]).mean_difference < near
    assert told.tensors == {kind: 15, "f32": 5}
    whole = export_gguf(folder, tmp_path / "whole.gguf")
    assert told.size_bytes < whole.size_bytes


def test_swapped_rows_are_found_out(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr("stillroom.models.gguf.export._interleave", lambda values, heads: values)
    folder = tiny_checkpoint(tmp_path / "model")
    told = export_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(CheckpointError) as caught:
        compare_gguf(folder, told.path, told.type, probes=["The old house kept its stillroom " * 4])
    assert caught.value.code == "checkpoint.gguf-unlike"


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_model_with_a_window_says_a_context_over_which_it_changes_nothing(tmp_path, kind):
    pytest.importorskip("xllamacpp")
    folder = make(tmp_path, kind)
    edit(folder, "config.json", sliding_window=256, use_sliding_window=True, max_window_layers=0)
    told = export_gguf(folder, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(told.path).fields
    named = fields["general.architecture"].contents()
    assert fields[f"{named}.context_length"].contents() == 256
    assert "context length is 256, within which both are equal" in "".join(told.notes)
    found = compare_gguf(folder, told.path, told.type, probes=PROBES)
    assert found.positions > 12
    assert found.mean_difference < 0.005


def test_a_model_that_computes_no_numbers_is_not_called_alike(tmp_path):
    pytest.importorskip("xllamacpp")
    folder = make(tmp_path, "llama")
    spoil(folder, "model.layers.1.mlp.up_proj.weight", math.nan)
    told = export_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(CheckpointError) as caught:
        compare_gguf(folder, told.path, told.type, probes=PROBES[:1])
    assert caught.value.code == "checkpoint.gguf-unlike"


def test_a_model_that_writes_nothing_is_not_called_alike(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    folder = tiny_checkpoint(tmp_path / "model")
    told = export_gguf(folder, tmp_path / "model.gguf")
    monkeypatch.setattr(
        "stillroom.models.backends.llamacpp.LlamacppModel.continue_tokens",
        lambda self, tokens, count, k: [],
    )
    with pytest.raises(CheckpointError, match=r"llama\.cpp wrote nothing") as caught:
        compare_gguf(folder, told.path, told.type, probes=PROBES[:1])
    assert caught.value.code == "checkpoint.gguf-unlike"


def test_a_file_that_is_not_computed_alike_does_not_take_the_place_of_another(
    tmp_path, monkeypatch
):
    pytest.importorskip("xllamacpp")
    folder, out = tiny_checkpoint(tmp_path / "model"), tmp_path / "model.gguf"
    words = ["checkpoint", "export", str(folder), "--to", "gguf", "--out", str(out), "--check"]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 0, done.output
    before = out.read_bytes()
    monkeypatch.setattr("stillroom.models.gguf.export._interleave", lambda values, heads: values)
    done = CliRunner().invoke(stillroom, [*words, "--overwrite"])
    assert done.exception.code == "checkpoint.gguf-unlike"
    assert out.read_bytes() == before
    names = ["model", "model.gguf", "model.gguf.artifact.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def spoil(folder: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name][0, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_round_trip_gives_the_same_tensors_and_tokens(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    told = export_gguf(folder, tmp_path / "model.gguf", name="Tiny")
    back = Checkpoint.open(dequantize_gguf(told.path, tmp_path / "cache"))
    ours = Checkpoint.open(folder)
    assert back.names() == ours.names()
    for name in ours.names():
        assert torch.equal(back.tensor(name), ours.tensor(name))
    again = export_gguf(back.folder, tmp_path / "again.gguf", name="Tiny")
    fields = [set(gguf.GGUFReader(one.path).fields) for one in (told, again)]
    assert {key for key in fields[0] if key.startswith("llama.")} <= fields[1]


def test_same_folder_gives_the_same_bytes_and_the_origin_travels(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    made = Artifact(
        "checkpoint",
        (),
        origin={"kind": "synthetic", "chain": [], "license": "PSF-2.0 AND apache-2.0"},
    )
    first = export_gguf(folder, tmp_path / "a" / "m.gguf", artifact=made)
    second = export_gguf(folder, tmp_path / "b" / "m.gguf", artifact=made)
    assert first.path.read_bytes() == second.path.read_bytes()
    fields = gguf.GGUFReader(first.path).fields
    assert fields["stillroom.origin.kind"].contents() == "synthetic"
    assert json.loads(fields["stillroom.origin"].contents())["license"] == "PSF-2.0 AND apache-2.0"
    assert fields["stillroom.fingerprint"].contents() == Checkpoint.open(folder).fingerprint
    assert fields["general.license"].contents() == "PSF-2.0 AND apache-2.0"


def sentencepiece_like(folder: Path) -> Path:
    """Write a checkpoint whose tokenizer is BPE over ▁ with bytes for what it lacks."""
    tiny_checkpoint(folder)
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    texts = ["the old still keeps wine and the old mill ground corn", "a still is a vessel"]
    tokenizer.train_from_iterator(texts * 3, trainer)
    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = told["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "eos_token": "</s>", "unk_token": "<unk>"}), encoding="utf-8"
    )
    return folder


def test_bpe_with_bytes_is_cut_alike(tmp_path):
    pytest.importorskip("xllamacpp")
    folder = sentencepiece_like(tmp_path / "model")
    told = export_gguf(folder, tmp_path / "model.gguf")
    texts = ["the old still", "vessel of Größe 日 wine", "a  mill\nthe corn"]
    found = compare_gguf(folder, told.path, told.type, probes=texts)
    assert found.texts_alike == 3
    assert found.same_token == found.positions
    kinds = gguf.GGUFReader(told.path).fields["tokenizer.ggml.token_type"].contents()
    assert kinds.count(6) == 256


def metaspace(scheme: str, *, split: bool = False) -> dict[str, object]:
    values = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return {"pre_tokenizer": values, "normalizer": None}


SPACED = ["the old still", " the old", "  two", "a  mill\n the", "the</s> old", "</s>old", " "]


@pytest.mark.parametrize(
    "values",
    [
        {},
        metaspace("never"),
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}},
    ],
)
def test_spaces_before_a_text_and_after_marks_are_cut_alike(tmp_path, values):
    pytest.importorskip("xllamacpp")
    folder = sentencepiece_like(tmp_path / "model")
    edit(folder, "tokenizer.json", **values)
    told = export_gguf(folder, tmp_path / "model.gguf")
    found = compare_gguf(folder, told.path, told.type, probes=SPACED)
    assert found.texts_alike == len(SPACED)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (metaspace("first"), "to the first piece only"),
        (metaspace("always"), "to the pieces without one"),
        (metaspace("never", split=True), "splits at spaces and has the token"),
        ({**metaspace("never"), "normalizer": {"type": "NFKC"}}, "its normalizer is"),
        ({"normalizer": {"type": "Prepend", "prepend": "_"}}, "its normalizer is"),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "its normalizer is"),
    ],
)
def test_spaces_that_would_be_cut_otherwise_are_refused(tmp_path, values, said):
    folder = sentencepiece_like(tmp_path / "model")
    edit(folder, "tokenizer.json", **values)
    with pytest.raises(CheckpointError, match=said) as caught:
        export_gguf(folder, tmp_path / "model.gguf")
    assert caught.value.code == "checkpoint.gguf-tokenizer"


def edit(folder: Path, file: str, **values) -> None:
    path = folder / file
    told = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(told), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "values", "code", "said"),
    [
        (
            "config.json",
            {"architectures": ["GPT2LMHeadModel"]},
            "checkpoint.gguf-architecture",
            "GPT2LMHeadModel",
        ),
        ("config.json", {"hidden_act": "gelu"}, "checkpoint.gguf-setting", "hidden_act: gelu"),
        (
            "config.json",
            {"stillroom_backend": "diffusion"},
            "checkpoint.gguf-setting",
            "left to right",
        ),
        (
            "config.json",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "checkpoint.gguf-setting",
            "rope_type: dynamic",
        ),
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "Whitespace"}},
            "checkpoint.gguf-tokenizer",
            "Whitespace",
        ),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Lowercase"}},
            "checkpoint.gguf-tokenizer",
            "Lowercase",
        ),
    ],
)
def test_what_the_file_cannot_say_is_refused_by_name(tmp_path, file, values, code, said):
    folder = tiny_checkpoint(tmp_path / "model")
    edit(folder, file, **values)
    with pytest.raises(CheckpointError) as caught:
        export_gguf(folder, tmp_path / "out" / "model.gguf")
    assert caught.value.code == code
    assert said in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def test_unknown_tensors_large_numbers_and_files_in_the_way_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, out = tiny_checkpoint(tmp_path / "model"), tmp_path / "model.gguf"
    weights = load_file(folder / "model.safetensors")
    large = {**weights, "model.norm.weight": weights["model.norm.weight"]}
    large["model.layers.0.mlp.up_proj.weight"] = torch.full((128, 64), 1e5)
    save_file(large, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="has the value 100000") as caught:
        export_gguf(folder, out, type="f16")
    assert caught.value.code == "checkpoint.gguf-range"
    assert not list(tmp_path.glob(".*"))
    assert not out.exists()
    save_file({**weights, "extra.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'extra\.weight' has no equivalent") as caught:
        export_gguf(folder, out)
    assert caught.value.code == "checkpoint.gguf-tensor"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="exists already"):
        export_gguf(folder, out)
    assert out.read_text(encoding="utf-8") == "mine"
