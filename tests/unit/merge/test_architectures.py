"""Any Hugging Face folder merges by its tensors' names: decoders, encoders, both, VLMs."""

import json

import pytest
import torch
import transformers

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.layers import count_layers, read_layer_values, restack_config
from stillroom.errors import CheckpointError, RecipeError
from stillroom.merge import merge_checkpoints
from stillroom.merge.engine.merge import Merge, open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.planning.inputs import open_sources, read_rules
from stillroom.merge.tensors.structure import (
    find_main_stack,
    find_stacks,
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


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gemma3_vision", "t5"])
@pytest.mark.filterwarnings("ignore")
def test_a_config_that_leaves_tying_to_its_architecture_keeps_its_output_head(name, tmp_path):
    parents = [make(tmp_path / f"m{seed}", name, seed) for seed in (1, 2)]
    stated = json.loads((parents[0] / "config.json").read_text())
    stated.pop("tie_word_embeddings", None)
    (parents[0] / "config.json").write_text(json.dumps(stated))
    merge_checkpoints("linear", None, parents, tmp_path / "out")
    kind = CLASSES.get(name, transformers.AutoModelForCausalLM)
    merged, lost = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not lost["missing_keys"]
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


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


@pytest.mark.parametrize(
    ("key", "value", "layers", "stacked"),
    [
        ("mlp_only_layers", [0, 2], [0, 1, 1, 2], [0, 3]),
        ("moe_layers", [0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3]),
        ("cross_attention_layers", [1], [0, 1, 1, 2], [1, 2]),
        ("no_rope_layers", [1, 0, 1], [0, 1, 1, 2], [1, 0, 0, 1]),
        ("hybrid_override_pattern", "M-*", [0, 1, 1, 2], "M--*"),
        ("first_k_dense_replace", 1, [0, 0, 1, 2], 2),
        ("first_k_dense_replace", 1, [1, 2], 0),
        ("decoder_sparse_step", 1, [0, 0, 1, 2], 1),
        ("decoder_sparse_step", 2, [0, 1, 2], 2),
        ("max_window_layers", 2, [0, 1, 1, 2], 2),
        ("eos_token_id", [7, 8, 9], [0, 1, 1, 2], [7, 8, 9]),
        ("architectures", ["A", "B", "C"], [0, 1, 1, 2], ["A", "B", "C"]),
    ],
)
def test_what_a_config_says_of_layers_follows_them(key, value, layers, stacked):
    config = {"num_hidden_layers": 3, key: value}
    assert restack_config(config, layers) == {"num_hidden_layers": len(layers), key: stacked}


@pytest.mark.parametrize(
    ("key", "value"), [("first_k_dense_replace", 1), ("decoder_sparse_step", 2)]
)
def test_an_order_that_a_config_cannot_state_is_refused(key, value):
    with pytest.raises(CheckpointError, match=key) as caught:
        restack_config({"num_hidden_layers": 3, key: value}, [1, 0, 2])
    assert caught.value.code == "checkpoint.layer-order"


@pytest.mark.parametrize(
    "said", [{"first_k_dense_replace": 1}, {"mlp_only_layers": []}, {"decoder_sparse_step": 1}]
)
def test_a_strangers_number_of_layers_fills_no_memory(said):
    config = {"num_hidden_layers": 10**12, **said}
    for read in (read_layer_values, lambda config: restack_config(config, [0, 1])):
        with pytest.raises(CheckpointError, match="states 1000000000000 layers") as caught:
            read(config)
        assert caught.value.code == "checkpoint.config"


def test_lists_beside_the_language_model_are_not_of_its_layers():
    config = {
        "text_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
        "image_grid_pinpoints": [[1, 2], [3, 4], [5, 6]],
        "vision_feature_layer": [1, 2, 3],
    }
    short = {"num_hidden_layers": 2, "layer_types": ["a", "c"]}
    assert restack_config(config, [0, 2]) == {**config, "text_config": short}
    assert list(read_layer_values(config)) == ["layer_types"]


@pytest.mark.parametrize(
    "key", ["mrope_section", "time_step_limit", "out_indices", "modules_to_not_convert"]
)
def test_lists_of_other_things_stay_as_they_are(key):
    config = {"num_hidden_layers": 2, key: [1, 2]}
    assert restack_config(config, [0, 1, 1]) == {**config, "num_hidden_layers": 3}


def test_numbers_of_layers_that_are_none_are_no_layers():
    config = {"num_hidden_layers": 2, "mlp_only_layers": [[0], "1", -1, 9]}
    assert read_layer_values(config) == {"mlp_only_layers": [False, False]}
    assert restack_config({"num_hidden_layers": -3, "mlp_only_layers": [1]}, [0]) == {
        "num_hidden_layers": 1,
        "mlp_only_layers": [1],
    }


CONFIGS |= {
    "gemma2_five": lambda: transformers.Gemma2Config(
        **SMALL | {"num_hidden_layers": 5}, intermediate_size=48, num_key_value_heads=1, head_dim=16
    ),
    "qwen2_window": lambda: transformers.Qwen2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=1,
        use_sliding_window=True, sliding_window=4, max_window_layers=2,
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **SMALL, intermediate_size=48, moe_intermediate_size=16, num_key_value_heads=1,
        shared_expert_intermediate_size=16, num_experts=2, num_experts_per_tok=1,
        mlp_only_layers=[1],
    ),
    "deepseek": lambda: transformers.DeepseekV3Config(
        **SMALL, intermediate_size=48, moe_intermediate_size=16, num_key_value_heads=2,
        n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        first_k_dense_replace=1,
    ),
}  # fmt: skip


def stack(names, slices, tmp_path, *, forget=()):
    """Stack layers of models, whose config.json of the first lacks some keys."""
    folders = [make(tmp_path / f"m{at}", name, at) for at, name in enumerate(names)]
    file = folders[0] / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in forget}))
    models = [{"model": str(folder)} for folder in folders]
    sources = [{"sources": [{"model": at, "layer_range": span}]} for at, span in slices]
    recipe = {"method": "passthrough", "models": models, "slices": sources}
    open_merge(MergeWeightsRecipe.model_validate(recipe)).write(tmp_path / "out")
    _, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return transformers.AutoConfig.from_pretrained(tmp_path / "out")


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("forget", [(), ("layer_types",)])
@pytest.mark.parametrize(
    ("names", "slices", "types"),
    [
        (["gemma2"], [(0, [0, 2]), (0, [1, 3])], [SLIDING, FULL, FULL, SLIDING]),
        (["qwen2_window"], [(0, [0, 3]), (0, [1, 3])], [FULL, FULL, SLIDING, FULL, SLIDING]),
        (["gemma2", "gemma2_five"], [(0, [0, 1]), (1, [3, 5])], [SLIDING, FULL, SLIDING]),
        (["gemma2", "gemma2_five"], [(1, [3, 5]), (0, [0, 1])], [FULL, SLIDING, SLIDING]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_keep_their_attention_in_a_stack(names, slices, types, forget, tmp_path):
    assert stack(names, slices, tmp_path, forget=forget).layer_types == types


@pytest.mark.filterwarnings("ignore")
def test_a_stack_whose_layers_would_become_others_is_refused(tmp_path):
    sizes = SMALL | {"num_hidden_layers": 4, "intermediate_size": 48, "lru_width": 32}
    CONFIGS["griffin"] = lambda: transformers.RecurrentGemmaConfig(
        **sizes, attention_window_size=8, num_key_value_heads=1
    )
    with pytest.raises(RecipeError, match="layers_block_type from the places") as caught:
        stack(["griffin"], [(0, [0, 2]), (0, [1, 4])], tmp_path)
    assert caught.value.code == "merge.slice"
    stack(["griffin"], [(0, [0, 2]), (0, [2, 3])], tmp_path / "same")


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        ("qwen2_moe", [(0, [0, 2]), (0, [1, 3])]),
        ("deepseek", [(0, [0, 1]), (0, [0, 3])]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_dense_layers_and_layers_of_experts_load_in_a_stack(name, slices, tmp_path):
    stack([name], slices, tmp_path)


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
