import copy
import json

import pytest
import torch

from stillroom.checkpoints import Checkpoint
from stillroom.distill.pruning.importance import (
    measure_ablation_costs,
    measure_block_influence,
    rank_layers,
)
from stillroom.distill.pruning.shapes import (
    count_layers,
    count_parameters,
    drop_config_layers,
)
from stillroom.distill.pruning.student import (
    StudentPlan,
    count_student_parameters,
    initialize_student,
    plan_student,
)
from stillroom.distill.settings import PruneSettings
from stillroom.errors import CheckpointError, RecipeError
from stillroom.models import load_causal_lm
from stillroom.testing import tiny_checkpoint


def no_teacher():
    raise AssertionError("the teacher was loaded, though nothing has to be measured")


def choose(checkpoint, **settings):
    return plan_student(checkpoint, PruneSettings(**settings), no_teacher, []).layers


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("deep") / "t", layers=9))


def test_keeps_as_many_as_the_share_allows(deep):
    count = count_layers(deep, PruneSettings(max_parameters=0.6))
    share, one_more = (
        count_parameters(deep, range(n)) / deep.parameters for n in (count, count + 1)
    )
    assert share <= 0.6 < one_more
    assert count_student_parameters(deep, PruneSettings()) == count_parameters(deep, range(count))


def test_influence_keeps_the_layers_that_change_most():
    assert rank_layers([0.0, 0.5, 0.1, 0.9, 0.2, 0.3, 0.0, 0.8, 0.0], 4) == (0, 3, 7, 8)


@pytest.mark.parametrize("tie", [True, False])
def test_the_student_is_an_ordinary_checkpoint(tmp_path, tie):
    teacher = tiny_checkpoint(tmp_path / "t", layers=4, tie=tie)
    folder = initialize_student(teacher, tmp_path / "s", StudentPlan((0, 2, 3)))
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
    teacher = tiny_checkpoint(tmp_path / "t", layers=3)
    path = teacher / "config.json"
    config = json.loads(path.read_text())
    config["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    config["max_window_layers"] = 2
    path.write_text(json.dumps(config))
    folder = initialize_student(teacher, tmp_path / "s", StudentPlan((0, 2)))
    found = json.loads((folder / "config.json").read_text())
    assert found["layer_types"] == ["full_attention", "full_attention"]
    assert found["max_window_layers"] == 1


def test_influence_is_measured_by_the_turn_of_the_state(loaded, lessons):
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():  # a layer that adds nothing turns nothing
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    influence = measure_block_influence(model, lessons[:2])
    assert influence[2] == pytest.approx(0.0, abs=1e-6)
    assert min(influence[:2] + influence[3:]) > 1e-4


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"keep": (0, 9), "max_parameters": 1.0}, "distill.layers"),
        ({"layers": 9, "max_parameters": 0.6}, "distill.too-large"),
        ({"layers": 99, "max_parameters": 1.0}, "distill.layers"),
        ({"max_parameters": 0.01}, "distill.too-large"),
    ],
)
def test_refuses_what_the_teacher_cannot_give(deep, settings, code):
    with pytest.raises(RecipeError) as caught:
        choose(deep, **settings)
    assert caught.value.code == code


def test_refuses_layers_it_cannot_tell(tmp_path):
    teacher = tiny_checkpoint(tmp_path / "t", layers=2)
    path = teacher / "config.json"
    config = json.loads(path.read_text())
    config["num_hidden_layers"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        choose(Checkpoint.open(teacher))
    assert caught.value.code == "distill.no-layers"


@pytest.fixture
def idle(loaded):
    """A teacher whose layer 2 adds nothing, and whose others do."""
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    return model


def test_an_idle_layer_costs_nothing(idle, lessons):
    before = copy.deepcopy(idle.state_dict())
    costs = measure_ablation_costs(idle, lessons[:2])
    assert costs[0] == costs[3] == float("inf")
    assert costs[2] == pytest.approx(0.0, abs=1e-6)
    assert costs[1] > 1e-3
    assert all(torch.equal(before[name], value) for name, value in idle.state_dict().items())


def test_costs_are_those_of_a_model_without_the_layer(loaded, lessons):
    whole, model = loaded[0], copy.deepcopy(loaded[0])
    costs = measure_ablation_costs(model, lessons[:2])
    del model.model.layers[1]
    model.config.num_hidden_layers = 3
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    total = count = 0
    for lesson in lessons[:2]:
        ids = torch.from_numpy(lesson.ids)[None]
        with torch.inference_mode():
            teacher, student = (
                torch.log_softmax(one(input_ids=ids).logits[0][lesson.positions], -1)
                for one in (whole, model)
            )
        total += (teacher.exp() * (teacher - student)).sum().item()
        count += len(lesson.labels)
    assert costs[1] == pytest.approx(total / count, abs=1e-5)


def test_lists_of_token_ids_are_not_lists_of_layers():
    config = {"num_hidden_layers": 2, "eos_token_id": [1, 2], "layer_types": ["a", "b"]}
    short = drop_config_layers(config, {}, 2, (1,))
    assert short == {"num_hidden_layers": 1, "eos_token_id": [1, 2], "layer_types": ["b"]}


def test_numbers_of_layers_in_a_config_follow_them():
    config = {"num_hidden_layers": 4, "mlp_only_layers": [0, 3], "first_k_dense_replace": 1}
    short = drop_config_layers(config, {}, 4, (0, 3))
    assert short == {"num_hidden_layers": 2, "mlp_only_layers": [0, 1], "first_k_dense_replace": 1}


def test_a_number_of_layers_that_is_stated_as_text_is_replaced():
    config = {"num_hidden_layers": "3", "n_layer": 9, "layer_types": ["a", "b", "c"]}
    short = drop_config_layers(config, {}, 3, (0, 2))
    assert short == {"num_hidden_layers": 2, "n_layer": 2, "layer_types": ["a", "c"]}


def test_what_follows_from_a_layers_number_is_written_down():
    short = drop_config_layers({"n_layer": 3}, {"layer_types": ["a", "b", "c"]}, 3, (0, 2))
    assert short == {"n_layer": 2, "layer_types": ["a", "c"]}


def test_refuses_layers_that_compute_by_their_number():
    with pytest.raises(CheckpointError) as caught:
        drop_config_layers({"n_layer": 3, "scale_attn_by_inverse_layer_idx": True}, {}, 3, (0, 2))
    assert caught.value.code == "distill.no-layers"
