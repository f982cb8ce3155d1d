"""A LoRA adapter over a base is a parent like any other."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stillroom.checkpoints import Checkpoint
from stillroom.errors import ShapeError
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.rules import rules_of
from stillroom.merge.sources import open_sources
from stillroom.merge.stream import Merge
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
    recipe = MergeRecipe.model_validate(
        {
            "method": "linear",
            "models": [
                {"checkpoint": str(base), "adapter": str(tmp_path / "one"), "weight": 3},
                {"checkpoint": str(base), "adapter": str(tmp_path / "two")},
            ],
        }
    )
    opened, parents = open_sources(recipe)
    Merge(recipe.method, opened, parents, rules_of(recipe)).write(tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    for name in out.names():
        wanted = (3 * first[name] + second[name]) / 4
        torch.testing.assert_close(out.tensor(name), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_base_is_refused_before_anything_is_read(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", layers=2)
    other = tiny_checkpoint(tmp_path / "other", layers=3)
    make_adapter(other, tmp_path / "one", 1)
    recipe = MergeRecipe.model_validate(
        {
            "method": "passthrough",
            "models": [{"checkpoint": str(base), "adapter": str(tmp_path / "one")}],
        }
    )
    with pytest.raises(ShapeError) as caught:
        open_sources(recipe)
    assert caught.value.problems[0].code == "merge.adapter-fit"
