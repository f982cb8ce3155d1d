"""A mixture of experts loads, routes by its prompts, and gives a dense model back."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen3Config

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, RecipeError, ShapeError
from stillroom.merge.engine.gates import find_similar_gates
from stillroom.merge.engine.merge import Merge
from stillroom.merge.jobs.moe import MoeRecipe
from stillroom.merge.planning.inputs import GatePrompts, MergeSource
from stillroom.merge.planning.moe import plan_moe
from stillroom.testing import tiny_checkpoint

PROMPTS = (["the mill ground corn"], ["def add(a, b): return a + b"])


def qwen(folder, kind):
    """Write a tiny Qwen model with the tiny tokenizer."""
    tiny_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    settings = {
        "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Qwen2Config(**settings) if kind == "qwen2" else Qwen3Config(head_dim=16, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def base(request, tmp_path):
    if request.param == "llama":
        return tiny_checkpoint(tmp_path / "base")
    return qwen(tmp_path / "base", request.param)


@pytest.fixture
def llama(tmp_path):
    return tiny_checkpoint(tmp_path / "base")


def expert(checkpoint, prompts=(), negative=()):
    prompts = GatePrompts(tuple(prompts), tuple(negative))
    return MergeSource(checkpoint.folder.name, checkpoint, prompts=prompts)


def experts_of(*folders, negative=()):
    return [
        expert(Checkpoint.open(folder), prompts, negative)
        for folder, prompts in zip(folders, PROMPTS, strict=True)
    ]


def build_moe(base, experts, out, *, gate_mode="hidden", experts_per_token=2, seed=0):
    recipe = MoeRecipe(
        base_model="base",
        experts=[{"model": name} for name in "ab"],
        gate_mode=gate_mode,
        experts_per_token=experts_per_token,
    )
    plan = partial(plan_moe, recipe)
    return Merge(plan, MergeSource(base.folder.name, base), experts, seed=seed).write(out)


def logits(folder, text="The still house"):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model(ids).logits, model, ids


def test_experts_that_are_all_the_base_give_the_base(base, tmp_path):
    done = build_moe(Checkpoint.open(base), experts_of(base, base), tmp_path / "out")
    assert done.fingerprint == Checkpoint.open(tmp_path / "out").fingerprint
    before, after = logits(base)[0], logits(tmp_path / "out")[0]
    assert torch.allclose(before, after, atol=1e-4)


def test_it_loads_whole_and_generates(base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    experts = [expert(Checkpoint.open(path)) for path in (base, other)]
    build_moe(Checkpoint.open(base), experts, tmp_path / "out", gate_mode="random")
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    _, _, ids = logits(tmp_path / "out")
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


def test_experts_and_gates_stand_where_the_layout_says(llama, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    build_moe(
        Checkpoint.open(llama), experts_of(llama, other), tmp_path / "out", experts_per_token=1
    )
    opened = Checkpoint.open(tmp_path / "out")
    for layer in range(2):
        gate = opened.tensor(f"model.layers.{layer}.block_sparse_moe.gate.weight")
        assert torch.allclose(gate.norm(dim=1), torch.ones(2), atol=1e-5)
        assert gate[0] @ gate[1] < 0.99
    for number, folder in enumerate((llama, other)):
        theirs = Checkpoint.open(folder).tensor("model.layers.1.mlp.down_proj.weight")
        ours = opened.tensor(f"model.layers.1.block_sparse_moe.experts.{number}.w2.weight")
        assert torch.equal(theirs, ours)


def test_the_gate_sees_what_it_was_made_from(llama, tmp_path):
    build_moe(Checkpoint.open(llama), experts_of(llama, llama), tmp_path / "out")
    caught = []
    _, model, ids = logits(llama, PROMPTS[0][0])
    hook = model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0])
    )
    with torch.inference_mode():
        model(ids)
    hook.remove()
    gate = Checkpoint.open(tmp_path / "out").tensor("model.layers.1.block_sparse_moe.gate.weight")
    mean = caught[0][0].mean(0)
    assert torch.allclose(gate[0], mean / mean.norm(), atol=1e-5)


@pytest.mark.parametrize("gate", ["hidden", "last", "cheap_embed"])
def test_negative_prompts_are_taken_away(llama, tmp_path, gate):
    for name, negative in (("plain", ()), ("against", ("a pinch of salt",))):
        experts = experts_of(llama, llama, negative=negative)
        build_moe(Checkpoint.open(llama), experts, tmp_path / name, gate_mode=gate)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    plain, against = (
        Checkpoint.open(tmp_path / folder).tensor(name) for folder in ("plain", "against")
    )
    assert not torch.allclose(plain, against, atol=1e-3)


def test_gates_that_cannot_tell_experts_apart_are_said(llama, tmp_path):
    opened = Checkpoint.open(llama)
    same = [expert(opened, PROMPTS[0]), expert(opened, PROMPTS[0])]
    build_moe(opened, same, tmp_path / "out")
    assert tuple(find_similar_gates(Checkpoint.open(tmp_path / "out"))) == (0, 1)


def test_random_gates_follow_the_seed(llama, tmp_path):
    opened = Checkpoint.open(llama)
    experts = [expert(opened), expert(opened), expert(opened)]
    prints = [
        build_moe(opened, experts, tmp_path / f"out{n}", gate_mode="random", seed=seed).fingerprint
        for n, seed in enumerate((0, 0, 1))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_half_precision_is_kept(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    build_moe(Checkpoint.open(base), experts_of(base, base), tmp_path / "out")
    opened = Checkpoint.open(tmp_path / "out")
    assert {opened.dtype(name) for name in opened.names()} == {torch.bfloat16}


def test_an_architecture_without_a_mixture_is_refused(llama, tmp_path):
    opened = Checkpoint.open(llama)
    opened.config["model_type"] = "gpt2"
    with pytest.raises(CheckpointError, match="gpt2") as caught:
        build_moe(opened, experts_of(llama, llama), tmp_path / "out")
    assert caught.value.code == "merge.moe"


def test_an_expert_of_another_shape_is_refused(llama, tmp_path):
    wide = tiny_checkpoint(tmp_path / "wide", hidden=96)
    with pytest.raises(ShapeError, match="mlp") as caught:
        build_moe(Checkpoint.open(llama), experts_of(llama, wide), tmp_path / "out")
    assert caught.value.code == "merge.moe-shape"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"experts": 1},
        {"experts_per_token": 3},
        {"positive": ()},
        {"positive": ("",)},
    ],
)
def test_experts_that_cannot_be_routed_to_are_refused(llama, tmp_path, settings):
    opened = Checkpoint.open(llama)
    prompts = settings.get("positive", ("a",))
    experts = [expert(opened, prompts)] * settings.get("experts", 2)
    with pytest.raises(RecipeError) as caught:
        build_moe(
            opened,
            experts,
            tmp_path / "out",
            experts_per_token=settings.get("experts_per_token", 1),
        )
    assert caught.value.code == "merge.moe-experts"
    assert np.all([not path.name.startswith(".out") for path in tmp_path.iterdir()])
