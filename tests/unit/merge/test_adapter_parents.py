"""A LoRA adapter over a base is a parent like any other."""

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.errors import ShapeError
from stillroom.merge.engine.merge import Merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.planning.inputs import open_sources, read_rules
from stillroom.testing import tiny_checkpoint


def make_adapter(base, folder, seed, **settings):
    """Write a LoRA adapter with weights that are not zero; return it merged by peft."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload().state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_mean_of_two_adapters_is_the_mean_of_what_peft_merges(settings, tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    first = make_adapter(base, tmp_path / "one", 1, **settings)
    second = make_adapter(base, tmp_path / "two", 2, **settings)
    recipe = MergeWeightsRecipe.model_validate(
        {
            "method": "linear",
            "models": [
                {"model": str(base), "adapter": str(tmp_path / "one"), "weight": 3},
                {"model": str(base), "adapter": str(tmp_path / "two")},
            ],
        }
    )
    opened, parents = open_sources(recipe)
    Merge(recipe.method, opened, parents, read_rules(recipe)).write(tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    for name in out.names():
        wanted = (3 * first[name] + second[name]) / 4
        torch.testing.assert_close(out.tensor(name), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_base_is_refused_before_anything_is_read(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", layers=2)
    other = tiny_checkpoint(tmp_path / "other", layers=3)
    make_adapter(other, tmp_path / "one", 1)
    recipe = MergeWeightsRecipe.model_validate(
        {
            "method": "passthrough",
            "models": [{"model": str(base), "adapter": str(tmp_path / "one")}],
        }
    )
    with pytest.raises(ShapeError) as caught:
        open_sources(recipe)
    assert caught.value.problems[0].code == "merge.adapter-fit"


ADAPTERS = {
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"v_proj": 3},
    },
    "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj"]},
    "dora": {"r": 3, "use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    "saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    "bias": {"r": 2, "target_modules": ["q_proj"], "lora_bias": True},
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "o_proj"]},
    "across": {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
}


def wrap(model, config, folder, seed):
    """Write an adapter whose every part has numbers as training would leave them."""
    wrapped = get_peft_model(model, LoraConfig(**config))
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            noise = 0.1 * torch.randn(parameter.shape, generator=rng)
            parameter.data += noise.abs() if "magnitude" in name else noise
    wrapped.save_pretrained(folder)


def base_for(kind, folder):
    """Write a base that the adapter fits: GPT-2 for transposed layers, biases where some change."""
    if kind == "across":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64)
    else:
        config = Qwen2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, vocab_size=64,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_that_peft_wrote_are_merged_from_the_command_line(kind, tmp_path):
    base, config = base_for(kind, tmp_path / "base"), ADAPTERS[kind]
    merged = []
    for seed in (1, 2):
        wrap(AutoModelForCausalLM.from_pretrained(base), config, tmp_path / f"lora{seed}", seed)
        plain = AutoModelForCausalLM.from_pretrained(base)
        loaded = PeftModel.from_pretrained(plain, tmp_path / f"lora{seed}")
        merged.append(loaded.merge_and_unload().state_dict())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nkind: merge.weights\nmethod: task_arithmetic\nbase_model: {base}\nmodels:\n"
        f"  - {{model: {base}, adapter: {tmp_path}/lora1, weight: 0.5}}\n"
        f"  - {{model: {base}, adapter: {tmp_path}/lora2, weight: 0.25}}\n"
    )
    words = ["merge", "run", str(recipe), "--out", str(tmp_path / "out"), "--quiet"]
    told = CliRunner().invoke(stillroom, words, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / "output", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    first, second = merged
    changed = 0
    for name, tensor in model.state_dict().items():
        wanted = start[name] + 0.5 * (first[name] - start[name])
        wanted = wanted + 0.25 * (second[name] - start[name])
        torch.testing.assert_close(tensor, wanted, rtol=2e-6, atol=2e-6)
        changed += not torch.equal(tensor, start[name])
    assert changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head"])
def test_an_adapter_of_one_of_two_tied_tensors_is_named(saved, tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    make_adapter(base, tmp_path / "one", 1, modules_to_save=[saved])
    models = [{"model": str(base), "adapter": str(tmp_path / "one")}]
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(f"kind: merge.weights\nmethod: passthrough\nmodels: {models}\n", "utf-8")
    shown = CliRunner().invoke(stillroom, ["merge", "plan", str(recipe)])
    if saved == "embed_tokens":
        assert "the head changes with it" in " ".join(shown.output.split())
    else:
        assert "untie" in shown.exception.problems[0].next
