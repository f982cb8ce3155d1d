"""Parents that are quantized are merged as the plain models that they stand for, or refused."""

import json

import pytest
import torch
from tests.unit.checkpoints.test_quantized import quantize_int8
from tests.unit.merge.conftest import rewrite

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError
from stillroom.jobs import Job
from stillroom.merge.engine.merge import open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe, run
from stillroom.merge.lora.extraction import extract_task_vector
from stillroom.merge.verification import verify_merge
from stillroom.recipes import dump_recipe

Q = "model.layers.0.self_attn.q_proj.weight"


def recipe_for(base, *parents, **settings):
    return MergeWeightsRecipe.model_validate(
        {"method": "ties", "base_model": str(base), "models": [{"model": str(p)} for p in parents]}
        | settings
    )


@pytest.fixture(scope="module")
def mixed(half_family, tmp_path_factory):
    """A bfloat16 base and parent, a parent in int8, and that parent dequantized by hand."""
    base, (first, second, _) = half_family
    folder = tmp_path_factory.mktemp("mixed")
    eight = quantize_int8(second, folder / "eight")
    plain = Checkpoint.open(eight)
    return base, first, eight, rewrite(second, folder / "plain", lambda name, _: plain.tensor(name))


@pytest.mark.parametrize("arithmetic", ["paper", "mergekit"])
def test_a_quantized_parent_merges_as_what_it_stands_for(mixed, tmp_path, arithmetic):
    base, first, eight, plain = mixed
    settings = {"arithmetic": arithmetic, "seed": 1}
    recipe = recipe_for(base, first, eight, **settings)
    told = run(recipe, Job.start(tmp_path / "a", dump_recipe(recipe)))
    run(recipe_for(base, first, plain, **settings), Job.start(tmp_path / "b", "recipe"))
    merged, expected = Checkpoint.open(tmp_path / "a"), Checkpoint.open(tmp_path / "b")
    assert merged.names() == expected.names()
    for name in merged.names():
        assert torch.equal(merged.tensor(name), expected.tensor(name)), name
    config = json.loads((tmp_path / "a" / "output" / "config.json").read_text())
    assert "quantization_config" not in config
    assert told.details["dequantized"] == {"eight": "bitsandbytes int8"}
    card = (tmp_path / "a" / "output" / "README.md").read_text()
    assert "eight from bitsandbytes int8" in card
    verify_merge(tmp_path / "a")


def test_the_plan_says_what_is_dequantized_and_copies_no_codes(mixed):
    base, first, eight, _ = mixed
    plan = open_merge(recipe_for(base, first, eight)).plan()
    assert "note: eight is dequantized from bitsandbytes int8" in str(plan)
    assert plan.count(merged=False) == 0


def test_what_cannot_be_dequantized_is_refused_and_not_copied(mixed, tmp_path):
    base, first, eight, _ = mixed
    stored = Checkpoint.open(eight)
    for said in ({"quant_method": "hqq"}, None):
        folder = tmp_path / f"as {said}"
        folder.mkdir()
        config = stored.config | {"quantization_config": said}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").symlink_to(eight / "model.safetensors")
        for rest in ("refuse", "copy"):
            with pytest.raises(CheckpointError) as caught:
                open_merge(recipe_for(base, first, folder, missing_tensors=rest)).plan()
            assert caught.value.code == "checkpoint.quantized"
            assert "missing_tensors:" not in str(caught.value)


def test_a_task_vector_is_of_the_weights_and_not_of_the_codes(mixed, tmp_path):
    base, _, eight, plain = mixed
    for name, folder in (("eight", eight), ("plain", plain)):
        tuned = Checkpoint.open(folder)
        extract_task_vector(tuned, Checkpoint.open(base), tmp_path / name)
    of_eight, of_plain = (Checkpoint.open(tmp_path / name) for name in ("eight", "plain"))
    assert of_eight.fingerprint == of_plain.fingerprint
