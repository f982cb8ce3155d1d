"""Any Hugging Face folder merges by its tensors' names: decoders, encoders, both, VLMs."""

import pytest
import torch
import transformers

from stillroom.checkpoints import Checkpoint
from stillroom.errors import RecipeError
from stillroom.merge import merge_checkpoints
from stillroom.merge.engine.merge import Merge, open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.planning.inputs import open_sources, read_rules
from stillroom.merge.tensors.structure import (
    count_layers,
    find_main_stack,
    find_stacks,
    restack_config,
    split_layer_name,
)
from stillroom.recipes import parse_recipe

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=64),
    "bert": lambda: transformers.BertConfig(**SMALL, intermediate_size=48),
    "qwen3": lambda: transformers.Qwen3Config(
        **SMALL, intermediate_size=48, num_key_value_heads=1, head_dim=16
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=1, head_dim=16
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, intermediate_size=48, num_key_value_heads=1, num_local_experts=2
    ),
    "t5": lambda: transformers.T5Config(
        d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=64
    ),
    "mamba": lambda: transformers.MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4
    ),
}
TEXT = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1}
VISION = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 14}
CONFIGS |= {
    "bert_classes": lambda: transformers.BertConfig(**SMALL, intermediate_size=48, num_labels=3),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, intermediate_size=48),
    "gemma3_vision": lambda: transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 16, "sliding_window": 8},
        vision_config={**VISION, "num_hidden_layers": 2, "image_size": 28},
        mm_tokens_per_image=4, image_token_index=60, boi_token_index=61, eoi_token_index=62,
    ),
    "qwen2_vision": lambda: transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        vision_config={"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2},
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    ),
    "llava": lambda: transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION, num_hidden_layers=2, image_size=28),
        image_token_index=60,
    ),
}  # fmt: skip
CLASSES = {
    "bert": transformers.BertForMaskedLM,
    "bert_classes": transformers.BertForSequenceClassification,
    "roberta": transformers.RobertaModel,
    "gemma3_vision": transformers.Gemma3ForConditionalGeneration,
    "qwen2_vision": transformers.Qwen2VLForConditionalGeneration,
    "llava": transformers.LlavaForConditionalGeneration,
    "t5": transformers.T5ForConditionalGeneration,
}


def make(folder, name, seed, **changes):
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    kind = CLASSES.get(name)
    model = kind(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.filterwarnings("ignore")
def test_a_mean_of_any_architecture_loads_and_is_the_mean(name, tmp_path):
    parents = [make(tmp_path / f"m{seed}", name, seed) for seed in (1, 2)]
    merged = merge_checkpoints("linear", None, parents, tmp_path / "out")
    assert not merged.copied or "bert" in name  # whose positions are whole numbers
    kind = CLASSES.get(name, transformers.AutoModelForCausalLM)
    models = [kind.from_pretrained(folder).state_dict() for folder in [*parents, tmp_path / "out"]]
    for key, tensor in models[2].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (models[0][key] + models[1][key]) / 2)
    every = set().union(*(Checkpoint.open(parent).names() for parent in parents))
    assert set(Checkpoint.open(tmp_path / "out").names()) | set(merged.tied) == every


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("gpt2", "transformer.h."),
        ("bert", "bert.encoder.layer."),
        ("qwen3", "model.layers."),
        ("mamba", "backbone.layers."),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_are_found_by_names(name, prefix, tmp_path):
    opened = Checkpoint.open(make(tmp_path / "m", name, 0))
    stack = find_main_stack(opened.names(), opened.config)
    assert stack is not None
    assert stack.prefix == prefix
    assert stack.count == count_layers(opened.config)


def test_a_vision_tower_has_a_stack_of_its_own():
    names = [f"vision.blocks.{layer}.w" for layer in range(4)]
    names += [f"language_model.model.layers.{layer}.w" for layer in range(6)]
    names += ["language_model.lm_head.weight"]
    assert {stack.count for stack in find_stacks(names).values()} == {4, 6}
    config = {"vision_config": {"depth": 4}, "text_config": {"num_hidden_layers": 6}}
    stack = find_main_stack(names, config)
    assert stack is not None
    assert stack.prefix == "language_model.model.layers."


def test_lists_of_one_entry_a_layer_follow_their_layers():
    config = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "eos": [1, 2]}
    assert restack_config(config, [0, 1, 1, 2]) == {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "b", "c"],
        "eos": [1, 2],
    }


@pytest.mark.filterwarnings("ignore")
def test_stacked_layers_load_and_hold_what_the_slices_say(tmp_path):
    one, two = (make(tmp_path / f"m{seed}", "qwen3", seed) for seed in (1, 2))
    recipe = MergeWeightsRecipe.model_validate(
        {
            "method": "passthrough",
            "models": [{"model": str(one)}, {"model": str(two)}],
            "slices": [
                {"sources": [{"model": 0, "layer_range": [0, 2]}]},
                {"sources": [{"model": 1, "layer_range": [0, 3]}]},
            ],
        }
    )
    base, parents = open_sources(recipe)
    merge = Merge(recipe.method, base, parents, read_rules(recipe), recipe.seed)
    merge.write(tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    assert out.config["num_hidden_layers"] == 5
    pairs = [(0, one, 0), (1, one, 1), (2, two, 0), (3, two, 1), (4, two, 2)]
    for layer, home, number in pairs:
        ours = out.tensor(f"model.layers.{layer}.mlp.up_proj.weight")
        theirs = Checkpoint.open(home).tensor(f"model.layers.{number}.mlp.up_proj.weight")
        assert torch.equal(ours, theirs)
    embedding = Checkpoint.open(one).tensor("model.embed_tokens.weight")
    assert torch.equal(out.tensor("model.embed_tokens.weight"), embedding)
    assert torch.equal(
        out.tensor("model.norm.weight"), Checkpoint.open(two).tensor("model.norm.weight")
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(8)[None]).logits).all()


@pytest.mark.parametrize("name", ["gemma3_vision", "qwen2_vision", "llava"])
@pytest.mark.filterwarnings("ignore")
def test_a_vision_tower_can_come_from_one_model_and_have_its_own_weights(name, tmp_path):
    base, one, two = (make(tmp_path / f"m{seed}", name, seed) for seed in (1, 2, 3))
    recipe = MergeWeightsRecipe.model_validate(
        {
            "method": "task_arithmetic",
            "base_model": str(base),
            "models": [{"model": str(one), "weight": 0.5}, {"model": str(two)}],
            "groups": [
                {"tensors": ["*projector*", "*visual.merger*"], "models": [1]},
                {
                    "tensors": ["*vision_tower*", "*visual.*"],
                    "models": [0],
                    "parameters": [{"setting": "weight", "model": 0, "value": [0.0, 1.0]}],
                },
            ],
        }
    )
    merge = open_merge(recipe)
    written = merge.write(tmp_path / "out")
    made, *parents = (Checkpoint.open(tmp_path / each) for each in ("out", "m1", "m2", "m3"))
    assert set(made.names()) | set(written.tied) == set().union(*(p.names() for p in parents))
    seen = set()
    for each in made.names():
        start, first, second = (parent.tensor(each) for parent in parents)
        if "projector" in each or "visual.merger" in each:
            part, wanted = "projector", second
        elif "vision_tower" in each or "visual." in each:
            layer = split_layer_name(each)
            part, share = "vision", layer[1] if layer else 0  # of two layers: 0 and 1
            wanted = start + share * (first - start)
        else:
            part, wanted = "text", start + 0.5 * (first - start) + (second - start)
        seen.add(part)
        torch.testing.assert_close(made.tensor(each), wanted)
    assert seen == {"projector", "vision", "text"}
    _, loading = CLASSES[name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


def test_a_part_of_a_model_that_is_not_there_is_refused():
    text = "version: 1\nkind: merge.weights\nmethod: linear\nmodels: [{model: a}]\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text + "groups:\n  - tensors: ['*']\n    models: [1]\n", "groups.yaml")
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("merge.group", "groups.yaml:7:13")
