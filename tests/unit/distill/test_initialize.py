import pytest
import torch

from stillroom.checkpoints import Checkpoint
from stillroom.distill.initialize import (
    choose_layers,
    count_parameters,
    initialize_student,
    layer_influence,
)
from stillroom.distill.recipe import DropLayers
from stillroom.errors import CheckpointError, RecipeError
from stillroom.models import load_causal_lm
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("deep") / "t", layers=9))


@pytest.mark.parametrize(
    ("layers", "kept"),
    [(1, (0,)), (2, (0, 8)), (3, (0, 4, 8)), (5, (0, 2, 4, 6, 8)), (9, tuple(range(9)))],
)
def test_keeps_first_and_last_and_evenly_between(deep, layers, kept):
    assert choose_layers(deep, DropLayers(layers=layers, max_parameters=1.0)) == kept


def test_keeps_as_many_as_the_share_allows(deep):
    kept = choose_layers(deep, DropLayers(max_parameters=0.6))
    share = count_parameters(deep, kept) / deep.parameters
    one_more = count_parameters(deep, range(len(kept) + 1)) / deep.parameters
    assert share <= 0.6 < one_more


def test_influence_keeps_the_layers_that_change_most(deep):
    influence = [0.0, 0.5, 0.1, 0.9, 0.2, 0.3, 0.0, 0.8, 0.0]
    kept = choose_layers(deep, DropLayers(layers=4, max_parameters=1.0), influence)
    assert kept == (0, 3, 7, 8)


@pytest.mark.parametrize("tie", [True, False])
def test_the_student_is_an_ordinary_checkpoint(tmp_path, tie):
    teacher = tiny_checkpoint(tmp_path / "t", layers=4, tie=tie)
    folder = initialize_student(teacher, tmp_path / "s", (0, 2, 3))
    student, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    whole, _ = load_causal_lm(teacher, dtype="float32", device="cpu")
    assert student.config.num_hidden_layers == 3
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[n] for n in (0, 2, 3)])
    for number, layer in enumerate(whole.model.layers):
        layer.self_attn.layer_idx = number
    ids = torch.tensor([tokenizer("A still turns wine.")["input_ids"]])
    with torch.inference_mode():
        wanted = whole(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(student(input_ids=ids).logits, wanted)
    opened = Checkpoint.open(folder)
    assert opened.parameters == count_parameters(Checkpoint.open(teacher), (0, 2, 3))
    assert opened.tokenizer_digest == Checkpoint.open(teacher).tokenizer_digest


def test_lists_with_one_entry_a_layer_are_shortened(tmp_path):
    import json

    teacher = tiny_checkpoint(tmp_path / "t", layers=3)
    path = teacher / "config.json"
    config = json.loads(path.read_text())
    config["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    config["max_window_layers"] = 2
    path.write_text(json.dumps(config))
    folder = initialize_student(teacher, tmp_path / "s", (0, 2))
    found = json.loads((folder / "config.json").read_text())
    assert found["layer_types"] == ["full_attention", "full_attention"]
    assert found["max_window_layers"] == 1


def test_influence_is_measured_by_the_turn_of_the_state(loaded, lessons):
    import copy

    model = copy.deepcopy(loaded[0])
    with torch.no_grad():  # a layer that adds nothing turns nothing
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    influence = layer_influence(model, lessons[:2])
    assert influence[2] == pytest.approx(0.0, abs=1e-6)
    assert min(influence[:2] + influence[3:]) > 1e-4


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"keep": (0, 9), "max_parameters": 1.0}, "distill.layers"),
        ({"layers": 9, "max_parameters": 0.6}, "distill.too-large"),
        ({"max_parameters": 0.01}, "distill.too-large"),
    ],
)
def test_refuses_what_the_teacher_cannot_give(deep, settings, code):
    with pytest.raises(RecipeError) as caught:
        choose_layers(deep, DropLayers(**settings))
    assert caught.value.code == code


def test_refuses_layers_it_cannot_tell(tmp_path):
    import json

    teacher = tiny_checkpoint(tmp_path / "t", layers=2)
    path = teacher / "config.json"
    config = json.loads(path.read_text())
    config["num_hidden_layers"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        choose_layers(Checkpoint.open(teacher), DropLayers())
    assert caught.value.code == "distill.no-layers"
