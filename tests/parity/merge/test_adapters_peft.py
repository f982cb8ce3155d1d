"""Adapters that peft made, put on by us and by peft's own merge_and_unload."""

import json
import warnings

import numpy as np
import pytest

from stillroom.checkpoints import Checkpoint
from stillroom.errors import RecipeError
from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter
from stillroom.merge.lora.combination import merge_adapters
from stillroom.merge.lora.extraction import extract_lora
from stillroom.testing import tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "plain": {"r": 8, "lora_alpha": 24, "target_modules": LINEAR},
    "rslora": {"r": 8, "lora_alpha": 3, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {"layers.1.self_attn.q_proj": 9, "down_proj": 2},
        "alpha_pattern": {r".*\.0\.mlp\.up_proj": 5, "o_proj": 1},
    },
    "patterns_rslora": {
        "r": 4,
        "use_rslora": True,
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 6},
        "alpha_pattern": {"q_proj": 13},
    },
    "embedding": {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "saved": {
        "r": 2,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "input_layernorm", "embed_tokens"],
    },
    "dora": {"r": 5, "lora_alpha": 7, "use_dora": True, "target_modules": LINEAR},
    "dora_rslora": {"r": 5, "use_dora": True, "use_rslora": True, "target_modules": LINEAR},
    "dora_embedding": {"r": 5, "use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
}


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_adapter(model, config, folder, seed=0):
    """Wrap a model, give every part of the adapter numbers as training would, and save it."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            noise = 0.1 * torch.randn(parameter.shape, generator=rng)
            parameter.data += noise.abs() if "magnitude" in name else noise
    wrapped.save_pretrained(folder)
    return folder


def merged_by_peft(model, folder):
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


def assert_equal(base, folder, model):
    theirs = merged_by_peft(model, folder)
    adapter = Adapter.open(folder)
    ours = AdaptedCheckpoint(Checkpoint.open(base), adapter)
    assert adapter.names()
    for name in ours.names():
        rows = ours.base.entry(name).rows
        found = ours.rows(name, 0, rows)
        wanted = theirs[name].numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6, err_msg=name)
        if name not in adapter:
            assert (found == wanted).all()
    changed = [name for name in adapter.names() if name in theirs]
    assert changed == adapter.names()
    return adapter


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_adapter_merges_as_peft_merges_it(kind, tmp_path):
    base = tiny_checkpoint(tmp_path / "base", tie=False)
    folder = make_adapter(load(base), KINDS[kind], tmp_path / "adapter")
    adapter = assert_equal(base, folder, load(base))
    if "dora" in kind:
        assert all(adapter.changes[name].magnitude for name in adapter.names())


def test_biases_of_adapters_merge_as_peft_merges_them(tmp_path):
    base = tiny_checkpoint(tmp_path / "plain", tie=False)
    config = json.loads((base / "config.json").read_text())
    model = load(base)
    model.config.attention_bias = True
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        biased = AutoModelForCausalLM.from_config(model.config)
    biased.save_pretrained(tmp_path / "base")
    assert config["attention_bias"] is False
    folder = make_adapter(
        load(tmp_path / "base"),
        {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
        tmp_path / "adapter",
    )
    adapter = assert_equal(tmp_path / "base", folder, load(tmp_path / "base"))
    assert "model.layers.0.self_attn.q_proj.bias" in adapter


@pytest.mark.parametrize("use_dora", [False, True])
def test_layers_that_lie_transposed_merge_as_peft_merges_them(use_dora, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    make_adapter(
        load(tmp_path / "base"),
        {
            "r": 4,
            "lora_alpha": 6,
            "fan_in_fan_out": True,
            "use_dora": use_dora,
            "target_modules": ["c_attn", "c_proj"],
        },
        tmp_path / "adapter",
    )
    assert_equal_bare(tmp_path / "base", tmp_path / "adapter")


def assert_equal_bare(base, folder):
    """As ``assert_equal``, for a model whose files leave out the outer module's name or not."""
    theirs = merged_by_peft(load(base), folder)
    ours = AdaptedCheckpoint(Checkpoint.open(base), Adapter.open(folder))
    for name in ours.names():
        rows = ours.base.entry(name).rows
        np.testing.assert_allclose(
            ours.rows(name, 0, rows), theirs[name].numpy(), rtol=2e-6, atol=1e-6, err_msg=name
        )


def logits(model):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits.double()


SUMS = {
    "plain": [{"r": 3, "lora_alpha": 6}, {"r": 5, "lora_alpha": 5}],
    "mixed": [
        {"r": 3, "use_rslora": True, "rank_pattern": {"q_proj": 7}},
        {"r": 2, "alpha_pattern": {"down_proj": 9}},
        {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
    ],
}


@pytest.mark.parametrize("kind", sorted(SUMS))
def test_a_merged_adapter_loads_in_peft_and_is_the_weighted_sum(kind, tmp_path):
    base = tiny_checkpoint(tmp_path / "base", tie=False)
    folders = [
        make_adapter(load(base), {"target_modules": LINEAR, **config}, tmp_path / f"a{seed}", seed)
        for seed, config in enumerate(SUMS[kind])
    ]
    weights = [0.7, -0.4, 1.5][: len(folders)]
    adapters = [Adapter.open(folder) for folder in folders]
    result = merge_adapters(adapters, weights, tmp_path / "sum")
    assert result.relative == 0
    start = {name: value.double() for name, value in load(base).state_dict().items()}
    wanted = dict(start)
    for folder, weight in zip(folders, weights, strict=True):
        theirs = merged_by_peft(load(base), folder)
        for name in wanted:
            wanted[name] = wanted[name] + weight * (theirs[name].double() - start[name])
    found = merged_by_peft(load(base), tmp_path / "sum")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].double(), value, atol=2e-6, err_msg=name)
    model = load(base)
    model.load_state_dict({name: value.float() for name, value in wanted.items()})
    unmerged = peft.PeftModel.from_pretrained(load(base), tmp_path / "sum")
    np.testing.assert_allclose(logits(unmerged), logits(model), atol=5e-5)


def test_whole_tensors_and_biases_are_summed_over_the_base(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", tie=False)
    config = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["model.norm", "lm_head"]}
    folders = [make_adapter(load(base), config, tmp_path / f"a{n}", n) for n in range(2)]
    adapters = [Adapter.open(folder) for folder in folders]
    with pytest.raises(RecipeError, match=r"merge\.base"):
        merge_adapters(adapters, [1, 1], tmp_path / "sum")
    result = merge_adapters(adapters, [0.5, 0.5], tmp_path / "sum", base=Checkpoint.open(base))
    assert result.replaced == ("lm_head.weight", "model.norm.weight")
    found = merged_by_peft(load(base), tmp_path / "sum")
    both = [merged_by_peft(load(base), folder) for folder in folders]
    for name, value in found.items():
        wanted = (both[0][name].double() + both[1][name].double()) / 2
        np.testing.assert_allclose(value.double(), wanted, atol=1e-6, err_msg=name)


def test_a_compressed_adapter_loads_in_peft_with_the_error_that_was_reported(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", tie=False)
    folders = [
        make_adapter(load(base), {"r": 6, "target_modules": LINEAR}, tmp_path / f"a{n}", n)
        for n in range(2)
    ]
    adapters = [Adapter.open(folder) for folder in folders]
    whole = merge_adapters(adapters, [1.0, 0.5], tmp_path / "whole")
    small = merge_adapters(adapters, [1.0, 0.5], tmp_path / "small", energy=0.8)
    assert {layer.rank for layer in whole.layers} == {12}
    assert len({layer.rank for layer in small.layers}) > 1  # so that patterns are needed
    exact = merged_by_peft(load(base), tmp_path / "whole")
    found = merged_by_peft(load(base), tmp_path / "small")
    for layer in small.layers:
        gap = (exact[layer.name].double() - found[layer.name].double()).norm()
        assert float(gap) == pytest.approx(layer.error, rel=1e-4)
        assert 0 < layer.relative <= 0.2**0.5


@pytest.mark.parametrize("tie", [False, True])
def test_an_extracted_adapter_at_full_rank_is_the_fine_tuned_model_in_peft(tie, tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    tiny_checkpoint(base, tie=tie)
    model = load(base)
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    model.save_pretrained(tuned)
    result = extract_lora(
        Checkpoint.open(tuned), Checkpoint.open(base), tmp_path / "lora", error=0.0
    )
    assert "model.embed_tokens.weight" in result.whole
    wrapped = peft.PeftModel.from_pretrained(load(base), tmp_path / "lora")
    np.testing.assert_allclose(logits(wrapped), logits(load(tuned)), atol=2e-4)
    over = AdaptedCheckpoint(Checkpoint.open(base), Adapter.open(tmp_path / "lora"))
    for name, value in load(tuned).state_dict().items():
        if name in over.base:
            found = over.rows(name, 0, over.base.entry(name).rows)
            np.testing.assert_allclose(found, value, atol=2e-6)


def test_an_extracted_adapter_carries_changed_biases(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "tuned")
    extract_lora(
        Checkpoint.open(tmp_path / "tuned"),
        Checkpoint.open(tmp_path / "base"),
        tmp_path / "lora",
        error=0.0,
    )
    wrapped = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "lora")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found, wanted = (each(input_ids=ids).logits for each in (wrapped, model.eval()))
    np.testing.assert_allclose(found, wanted, atol=2e-4)
