import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillroom.errors import CheckpointError, RecipeError
from stillroom.models.local.causal_lm import (
    choose_device,
    choose_dtype,
    load_causal_lm,
    load_model_only,
)
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_model_and_tokenizer_are_ready_and_nothing_is_printed(folder, capfd):
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id is not None
    assert capfd.readouterr() == ("", "")


def test_a_model_alone_needs_no_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    model = load_model_only(tmp_path / "m", dtype="float32", device="cpu")
    assert not model.training
    with pytest.raises(CheckpointError):
        load_causal_lm(tmp_path / "m", dtype="float32", device="cpu")


def test_dtypes_are_chosen_or_refused():
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) in {torch.bfloat16, torch.float32}
    with pytest.raises(CheckpointError) as caught:
        choose_dtype("int3", torch.device("cpu"))
    assert caught.value.code == "checkpoint.dtype"


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    missing = ["gpu", "cuda:97"]
    for name in missing:
        with pytest.raises(RecipeError, match=f"device '{name}' is not available") as caught:
            choose_device(name)
        assert caught.value.code == "recipe.device"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), "up_proj.weight' is missing"),
        (lambda t: t.update({"model.odd": torch.zeros(2)}), "'model.odd' is unexpected"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"has shape \(3,\), not"),
    ],
)
def test_a_model_is_never_filled_up_with_random_weights(folder, tmp_path, change, named):
    shutil.copytree(folder, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=named) as caught:
        load_causal_lm(tmp_path / "m")
    assert caught.value.code == "checkpoint.tensors"


def test_what_another_backend_reads_is_not_read_as_autoregressive(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "stillroom_backend": "diffusion"}))
    with pytest.raises(CheckpointError, match="requires backend 'diffusion'") as caught:
        load_causal_lm(tmp_path / "m")
    assert caught.value.code == "checkpoint.other-backend"
    load_causal_lm(tmp_path / "m", backend="diffusion")


def test_pickled_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin") as caught:
        load_causal_lm(tmp_path / "pickled")
    assert caught.value.code == "checkpoint.pickle"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_causal_lm(tmp_path)
    assert caught.value.code == "checkpoint.not-a-checkpoint"


def test_code_of_a_checkpoint_is_never_run(folder, tmp_path):
    hostile = tmp_path / "hostile"
    shutil.copytree(folder, hostile)
    (hostile / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = (hostile / "config.json").read_text()
    (hostile / "config.json").write_text(
        config.replace('"model_type": "llama"', '"model_type": "evil"').replace(
            "{", '{"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},', 1
        )
    )
    with pytest.raises(CheckpointError) as caught:
        load_causal_lm(hostile)
    assert caught.value.code == "checkpoint.unloadable"
    assert not (tmp_path / "ran").exists()
