"""Coefficients learned on records, checked by finite differences and on what they never saw."""

import json

import pytest
import torch
from click.testing import CliRunner
from tests.unit.merge.analysis.test_comparison import move, records
from tests.unit.merge.lora.test_adapter import refused, write_adapter

from stillroom.checkpoints import Checkpoint
from stillroom.cli.merge.analysis import learn_command
from stillroom.errors import DataError, RecipeError
from stillroom.merge.analysis.comparison import open_model
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.search.learned_coefficients import (
    CoefficientTraining,
    _Mixer,
    learn_coefficients,
    write_recipe,
)
from stillroom.recipes import load_recipe
from stillroom.records import write_records


@pytest.fixture
def opened(family):
    base = Checkpoint.open(family[0])
    return base, [open_model(str(path), base) for path in family[1][:2]]


def test_gradients_of_coefficients_equal_finite_differences(opened):
    base, parents = opened
    mixer = _Mixer(base, parents, CoefficientTraining(), "cpu")
    batch = mixer.encode(records(3))
    at = mixer.start()
    slopes = mixer.gradient(at, batch)
    tokens = sum(len(each.targets) for each in batch)

    def loss(coefficients):
        return sum(nats for nats, _ in mixer.losses(coefficients, batch)) / tokens

    for place in ((0, 0), (1, 1), (1, 2)):
        step = torch.zeros_like(at)
        step[place] = 0.004
        measured = (loss(at + step) - loss(at - step)) / 0.008
        assert float(slopes[place]) == pytest.approx(measured, rel=0.03, abs=2e-5)


@pytest.mark.parametrize("objective", ["cross_entropy", "entropy"])
def test_learning_lowers_what_it_is_asked_to(opened, objective):
    base, parents = opened
    learning = CoefficientTraining(objective=objective, steps=8, every=4, learning_rate=0.1)
    found = learn_coefficients(base, parents, records(12), learning, device="cpu")
    if objective == "cross_entropy":
        assert found.losses["learned"].value < found.losses["start"].value
    assert found.step > 0
    assert min(loss for _, loss in found.history) < found.history[0][1]
    assert list(found.coefficients) == ["embed_tokens", "layer 0", "layer 1", "norm"]
    again = learn_coefficients(base, parents, records(12), learning, device="cpu")
    assert again.coefficients == found.coefficients


def test_entropy_is_judged_by_the_loss_too(opened):
    base, parents = opened
    quick = {"steps": 10, "every": 10, "learning_rate": 0.2}
    found = [
        learn_coefficients(base, parents, records(12), CoefficientTraining(objective=name, **quick))
        for name in ("entropy", "cross_entropy")
    ]
    for name in ("0/tune1", "1/tune2", "start"):
        assert found[0].losses[name].value == found[1].losses[name].value
    assert found[0].losses["learned"].value > found[1].losses["learned"].value


def test_nothing_gained_is_said(family, tmp_path):
    base = Checkpoint.open(family[0])
    same = open_model(str(move(family[0], tmp_path / "same", 1, scale=0.0)), base)
    learning = CoefficientTraining(steps=2, every=1)
    found = learn_coefficients(base, [same], records(12), learning, device="cpu")
    assert not found.is_better
    assert found.to_json()["is_better"] is False
    assert found.gain.value == pytest.approx(0, abs=1e-6)


def test_the_recipe_makes_the_merge_that_was_learned(family, opened, tmp_path):

    from stillroom.merge.planning.inputs import read_rules

    base, parents = opened
    learning = CoefficientTraining(steps=4, every=2, group="module", learning_rate=0.1)
    found = learn_coefficients(base, parents, records(12), learning, device="cpu")
    made = found.to_recipe(str(family[0]), [str(path) for path in family[1][:2]])
    path = tmp_path / "recipe.yaml"
    write_recipe(made, path)
    recipe = load_recipe(path)
    assert isinstance(recipe, MergeWeightsRecipe)
    name = "model.layers.1.self_attn.q_proj.weight"
    tuned = read_rules(recipe).resolve(recipe.method, (1.0, 1.0), ({}, {}), (0, 1), name, 1.0)
    assert tuned.weights == found.coefficients["q_proj"]


@pytest.mark.parametrize("change", [{"steps": 0}, {"learning_rate": -1.0}, {"batch": 0}])
def test_settings_that_make_no_sense_are_refused(opened, change):
    base, parents = opened
    with refused(RecipeError, "merge.learning-settings"):
        learn_coefficients(base, parents, records(12), CoefficientTraining(**change))
    with refused(RecipeError, "merge.learning-settings"):
        learn_coefficients(base, [], records(12))


def test_too_few_records_are_refused(opened):
    base, parents = opened
    with refused(DataError, "merge.no-records"):
        learn_coefficients(base, parents, records(3), device="cpu")


def test_the_command_writes_a_recipe_that_merges(family, tmp_path):
    base, (one, *_) = family
    adapter = write_adapter(tmp_path / "adapter")
    write_records(tmp_path / "r.jsonl", records(12))
    out = tmp_path / "learned.yaml"
    arguments = [str(base), str(one), str(adapter), "--records", str(tmp_path / "r.jsonl")]
    more = ["--steps", "2", "--device", "cpu", "--out", str(out)]
    shown = CliRunner().invoke(learn_command, [*arguments, *more])
    assert shown.exit_code == 0, shown.output
    assert "the best model" in shown.output
    recipe = load_recipe(out)
    assert isinstance(recipe, MergeWeightsRecipe)
    assert recipe.models[1].adapter == str(adapter)
    again = CliRunner().invoke(learn_command, [*arguments, *more, "--json"])
    assert json.loads(again.output[again.output.index("{") :])["learned"]["step"] >= 0
