import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.config_file import read_end_tokens
from stillroom.errors import CheckpointError
from stillroom.models.encoders.vision import _normalization as read_normalization
from stillroom.testing import tiny_checkpoint

WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def reshard(source, folder, shard_size, names=None):
    opened = Checkpoint.open(source)
    with CheckpointWriter(folder, config=opened.config, shard_size=shard_size) as writer:
        for name in names or opened.names():
            writer.add(name, opened.tensor(name))
        writer.copy_tokenizer(source)
    return folder


def test_opens_without_loading_and_tells_names_shapes_and_types(tiny):
    checkpoint = Checkpoint.open(tiny)
    assert checkpoint.names() == sorted(checkpoint.names())
    assert checkpoint.shape(WEIGHT) == (128, 64)
    assert checkpoint.dtype(WEIGHT) is torch.float32
    assert checkpoint.tensor(WEIGHT).shape == (128, 64)


def test_transformers_and_we_read_the_same_weights(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    state = model.state_dict()
    checkpoint = Checkpoint.open(tiny)
    for name in checkpoint.names():
        assert torch.equal(checkpoint.tensor(name), state[name])


@pytest.mark.parametrize("kept", ["*.json", "*"])
def test_of_an_older_index_beside_the_weights_transformers_and_we_read_neither(
    kept, tiny, tmp_path
):
    from transformers import AutoModelForCausalLM

    older = reshard(tiny_checkpoint(tmp_path / "first", seed=1), tmp_path / "older", 60_000)
    folder = shutil.copytree(tiny, tmp_path / "again")
    for path in older.glob(f"model{kept}"):
        shutil.copy(path, folder)
    assert (folder / "model.safetensors.index.json").is_file()
    opened = Checkpoint.open(folder)
    assert opened.fingerprint == Checkpoint.open(tiny).fingerprint
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.state_dict()[WEIGHT], opened.tensor(WEIGHT))


def test_blocks_of_rows_make_up_the_tensor(tiny):
    checkpoint = Checkpoint.open(tiny)
    rows = list(checkpoint.blocks(WEIGHT, block_bytes=1000))
    assert len(rows) > 10
    assert torch.equal(torch.cat(rows), checkpoint.tensor(WEIGHT))
    assert torch.equal(checkpoint.rows(WEIGHT, 3, 5), checkpoint.tensor(WEIGHT)[3:5])
    with pytest.raises(IndexError):
        checkpoint.rows(WEIGHT, 0, 129)


def test_writing_to_a_tensor_changes_no_file(tiny):
    checkpoint = Checkpoint.open(tiny)
    before = checkpoint.fingerprint
    checkpoint.tensor(WEIGHT).zero_()
    assert Checkpoint.open(tiny).tensor(WEIGHT).abs().sum() > 0
    assert Checkpoint.open(tiny).fingerprint == before


def test_fingerprint_names_the_weights_not_the_files(tiny, tmp_path):
    checkpoint = Checkpoint.open(tiny)
    seven = reshard(tiny, tmp_path / "seven", 60_000, list(reversed(checkpoint.names())))
    assert len(list(seven.glob("*.safetensors"))) > 5
    assert Checkpoint.open(seven).fingerprint == checkpoint.fingerprint
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    assert Checkpoint.open(other).fingerprint != checkpoint.fingerprint


def test_fingerprint_follows_a_change_of_the_file(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    before = Checkpoint.open(folder).fingerprint
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert Checkpoint.open(folder).fingerprint != before


def test_tied_weights_count_once(tmp_path):
    tied = Checkpoint.open(tiny_checkpoint(tmp_path / "tied"))
    loose = Checkpoint.open(tiny_checkpoint(tmp_path / "loose", tie=False))
    assert loose.parameters - tied.parameters == 64 * tied.config["vocab_size"]
    assert "lm_head.weight" in loose
    stored = dict(loose.config, tie_word_embeddings=True)
    assert Checkpoint(loose.folder, stored, loose._store).parameters == tied.parameters


@pytest.mark.parametrize(
    ("name", "is_tied"),
    [
        ("head.weight", False),
        ("output.weight", False),
        ("transformer.output_layer.weight", False),
        ("lm_head.linear.weight", False),
        ("model.layers.0.attention.output.weight", True),
        ("model.norm.weight", True),
    ],
)
def test_a_stored_head_of_another_name_is_not_tied(name, is_tied, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    table = torch.zeros(8, 4)
    save_file({"emb.weight": table, name: table.clone()}, tmp_path / "model.safetensors")
    assert Checkpoint.open(tmp_path).is_tied == is_tied


def test_tokenizer_digest_does_not_see_formatting_or_padding(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"padding": None, "truncation": None}, indent=7))
    assert Checkpoint.open(folder).tokenizer_digest == Checkpoint.open(tiny).tokenizer_digest
    assert Checkpoint.open(folder).vocabulary_digest == Checkpoint.open(tiny).vocabulary_digest
    values["added_tokens"][0]["content"] = "<|other|>"
    path.write_text(json.dumps(values))
    assert Checkpoint.open(folder).tokenizer_digest != Checkpoint.open(tiny).tokenizer_digest
    assert Checkpoint.open(folder).vocabulary_digest != Checkpoint.open(tiny).vocabulary_digest
    path.unlink()
    assert Checkpoint.open(folder).tokenizer_digest == ""


def test_license_comes_from_the_card(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    assert Checkpoint.open(folder).license == ""
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert Checkpoint.open(folder).license == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert Checkpoint.open(folder).license == ""


def test_an_artifact_folder_is_its_output(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "job" / "output")
    (tmp_path / "job" / "artifact.json").write_text(
        json.dumps({"format": 1, "kind": "checkpoint", "files": [], "parents": []})
    )
    assert Checkpoint.open(tmp_path / "job").folder == tmp_path / "job" / "output"


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda folder: shutil.rmtree(folder), "checkpoint.missing"),
        (lambda folder: (folder / "config.json").unlink(), "checkpoint.config"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "checkpoint.config"),
        (lambda folder: (folder / "model.safetensors").unlink(), "checkpoint.no-weights"),
    ],
)
def test_what_is_missing_is_said(tiny, tmp_path, prepare, code):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    prepare(folder)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert caught.value.code == code
    assert caught.value.problems[0].next


def test_unknown_tensor_and_lone_file_are_refused(tiny):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tiny).shape("no.such")
    assert caught.value.code == "checkpoint.no-tensor"
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tiny / "model.safetensors")
    assert caught.value.code == "checkpoint.missing"


def test_broken_tokenizer_is_said(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError) as caught:
        _ = Checkpoint.open(folder).tokenizer_digest
    assert caught.value.code == "checkpoint.tokenizer"


def test_pickle_is_refused_unless_allowed(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    source = Checkpoint.open(tiny)
    torch.save({n: source.tensor(n) for n in source.names()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert caught.value.code == "checkpoint.pickle"
    allowed = Checkpoint.open(folder, allow_pickle=True)
    assert allowed.fingerprint == source.fingerprint
    assert torch.equal(allowed.tensor(WEIGHT), source.tensor(WEIGHT))


def test_an_adapter_is_told_from_a_folder_without_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a LoRA adapter, not a whole model") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.code == "checkpoint.config"
    assert "adapter:" in caught.value.problems[0].next


@pytest.mark.parametrize(
    "text",
    ["[" * 99_999, "[]", "x", '{"eos_token_id": "2"}', f'{{"eos_token_id": [{10**400}]}}'],
)
def test_end_tokens_that_are_no_ids_are_refused(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config.json cannot be read") as caught:
        read_end_tokens(tmp_path, "config.json", "generation_config.json")
    assert caught.value.code == "checkpoint.config"


def test_end_tokens_of_all_configs_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7, null]}')
    assert read_end_tokens(tmp_path, "config.json", "generation_config.json", "no.json") == [
        2,
        2,
        7,
    ]


def test_the_normalization_of_an_encoder_is_read_or_refused(tmp_path):
    config = tmp_path / "preprocessor_config.json"
    config.write_text('{"image_mean": [0, 0.5, 1]}')
    assert read_normalization(tmp_path)[0] == (0.0, 0.5, 1.0)
    for text in ("[" * 99_999, "[]", '{"image_std": 1}', f'{{"image_std": [{10**400}]}}'):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=r"preprocessor_config.json cannot be read"):
            read_normalization(tmp_path)
