import sys

import pytest
import torch

from stillroom.errors import MissingExtraError, RecipeError
from stillroom.models import load_causal_lm
from stillroom.testing import tiny_checkpoint
from stillroom.train.lora import add_lora, check_lora_config, check_lora_targets, export_tensors
from stillroom.train.settings import LoraSettings


@pytest.fixture
def model(tmp_path):
    return load_causal_lm(tiny_checkpoint(tmp_path / "tiny"), dtype="float32", device="cpu")[0]


def disturb(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


def test_exports_what_merging_would_give_and_leaves_the_run_alone(model):
    plain = dict(export_tensors(model))
    ids = torch.arange(5)[None]
    lora = add_lora(model, LoraSettings(rank=2), seed=0)
    disturb(lora)
    before = {name: value.detach().clone() for name, value in lora.named_parameters()}
    exported = {name: tensor.clone() for name, tensor in export_tensors(lora)}
    assert set(exported) == set(plain)
    after = dict(lora.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.inference_mode():
        wanted = lora(input_ids=ids).logits
        merged = lora.merge_and_unload()
        merged.load_state_dict(exported, strict=False)
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_trains_little_and_starts_where_the_model_is(model):
    ids = torch.arange(5)[None]
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
    lora = add_lora(model, LoraSettings(rank=2, targets=("q_proj",)), seed=0)
    names = [name for name, value in lora.named_parameters() if value.requires_grad]
    assert names
    assert all("q_proj.lora_" in name for name in names)
    with torch.inference_mode():
        torch.testing.assert_close(lora(input_ids=ids).logits, wanted)


def test_same_seed_same_start(tmp_path):
    found = []
    for _ in range(2):
        model, _ = load_causal_lm(tiny_checkpoint(tmp_path / "tiny"), dtype="float32", device="cpu")
        lora = add_lora(model, LoraSettings(rank=2), seed=4)
        found.append([value for value in lora.parameters() if value.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_says_which_extra_brings_peft(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"stillroom\[train\]"):
        add_lora(model, LoraSettings(), seed=0)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_refuses_an_update_of_one_of_two_tied_layers(tmp_path, layer):
    folder = tiny_checkpoint(tmp_path / "tied", tie=True)
    model = load_causal_lm(folder, dtype="float32", device="cpu")[0]
    with pytest.raises(RecipeError, match=f"the weight of {layer} is another layer's") as caught:
        add_lora(model, LoraSettings(rank=2, targets=("q_proj", layer)), seed=0)
    assert caught.value.code == "train.lora-head"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_projj",), "no layer q_projj"),
        (("query", "v_projj"), "no layer query, v_projj"),
        ((), "no layer"),
        (("norm",), "norm cannot be adapted"),
        (("input_layernorm", "x"), "input_layernorm cannot be adapted"),
        (("q_proj", "norm"), "norm cannot be adapted"),
        (("q_proj", "mlp"), "mlp cannot be adapted"),
    ],
)
def test_refuses_names_of_no_layer(model, targets, message):
    with pytest.raises(RecipeError, match=message) as caught:
        add_lora(model, LoraSettings(rank=2, targets=targets), seed=0)
    (problem,) = caught.value.problems
    assert problem.code == "train.lora-targets"
    assert "k_proj" in problem.expected
    assert "embed_tokens" not in problem.expected


def test_a_list_for_several_architectures_adapts_the_layers_that_are_there(model):
    settings = LoraSettings(rank=2, targets=("q_proj", "c_attn", "query_key_value"))
    warning = check_lora_targets(settings, model)
    assert warning.startswith("the model has no layer c_attn, query_key_value")
    assert "k_proj" in warning
    lora = add_lora(model, settings, seed=0)
    names = [name for name, value in lora.named_parameters() if value.requires_grad]
    assert names
    assert all("q_proj.lora_" in name for name in names)


@pytest.mark.parametrize(
    "target", ["q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj", "lm_head"]
)
def test_finds_layers_without_weights_as_peft_does(tmp_path, target):
    config = tiny_checkpoint(tmp_path / "tied", tie=True) / "config.json"
    assert not check_lora_config(LoraSettings(targets=(target,)), config)
    assert "no layer x" in check_lora_config(LoraSettings(targets=(target, "x")), config)
    with pytest.raises(RecipeError, match="no layer x"):
        check_lora_config(LoraSettings(targets=("x",)), config)
