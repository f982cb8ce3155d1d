"""Settings that vary, slices, compatibility: what a recipe may say, what holds for a tensor."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from tests.unit.merge.conftest import fine_tune

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.errors import RecipeError
from stillroom.merge.engine.merge import Merge, open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.mergekit.recipe_files import load_merge
from stillroom.merge.planning.inputs import open_sources, read_rules
from stillroom.merge.planning.plan import explain_tensor, list_warnings
from stillroom.merge.planning.planner import plan_sources
from stillroom.recipes import build_recipe
from stillroom.testing import tiny_checkpoint

UP = "model.layers.{}.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_checkpoint(folder / "base", layers=5)
    return base, [fine_tune(base, folder / f"tune{seed}", seed) for seed in (1, 2)]


def recipe_of(pair, method="linear", **settings):
    base, tunes = pair
    models = settings.pop("models", [{"model": str(tune)} for tune in tunes])
    values = {"method": method, "base_model": str(base), "models": models} | settings
    recipe = build_recipe({"version": 1, "kind": "merge.weights"} | values, "merge.yaml")
    assert isinstance(recipe, MergeWeightsRecipe)
    return recipe


def merged(recipe, out):
    base, parents = open_sources(recipe)
    Merge(recipe.method, base, parents, read_rules(recipe), recipe.seed).write(out)
    return Checkpoint.open(out)


def test_a_gradient_runs_from_the_first_layer_to_the_last(pair, tmp_path):
    recipe = recipe_of(
        pair,
        "task_arithmetic",
        models=[{"model": str(pair[1][0])}],
        parameters=[{"setting": "scale", "value": [0, 1]}],
    )
    out = merged(recipe, tmp_path / "out")
    start, end = Checkpoint.open(pair[0]), Checkpoint.open(pair[1][0])
    for layer, part in enumerate([0, 0.25, 0.5, 0.75, 1]):
        name = UP.format(layer)
        wanted = start.tensor(name) + part * (end.tensor(name) - start.tensor(name))
        torch.testing.assert_close(out.tensor(name), wanted, rtol=0, atol=1e-7)
    # What stands outside the layers takes the gradient's first value.
    assert torch.equal(out.tensor(NORM), start.tensor(NORM))


def test_the_first_entry_that_fits_counts_and_models_have_their_own(pair, tmp_path):
    recipe = recipe_of(
        pair,
        parameters=[
            {"setting": "weight", "model": 0, "tensors": ["*.mlp.*"], "value": 0},
            {"setting": "weight", "model": 0, "value": 3},
            {"setting": "weight", "model": 1, "value": 1},
        ],
    )
    out = merged(recipe, tmp_path / "out")
    first, second = (Checkpoint.open(tune) for tune in pair[1])
    assert torch.equal(out.tensor(UP.format(0)), second.tensor(UP.format(0)))
    mean = (3 * first.tensor(NORM) + second.tensor(NORM)) / 4
    torch.testing.assert_close(out.tensor(NORM), mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "code", "where"),
    [
        (
            {"parameters": [{"setting": "weight", "model": 7, "value": 1}]},
            "merge.parameters",
            "parameters.0.model",
        ),
        (
            {"parameters": [{"setting": "densty", "value": 1}]},
            "merge.parameters",
            "parameters.0.setting",
        ),
        (
            {"parameters": [{"setting": "normalize", "value": 0.3}]},
            "merge.parameters",
            "parameters.0",
        ),
        (
            {"parameters": [{"setting": "density", "model": 0, "value": 1}]},
            "merge.unused-setting",
            "parameters.0.setting",
        ),
        (
            {"arithmetic": {"name": "paper", "compute_dtype": "float32"}},
            "recipe.unknown-key",
            "merge.yaml",
        ),
        ({"models": [{"model": "a", "weigth": 2}]}, "merge.unused-setting", "models.0.weigth"),
        (
            {"slices": [{"sources": [{"model": 5, "layer_range": [0, 1]}]}]},
            "merge.slice",
            "slices.0.sources.0.model",
        ),
    ],
)
def test_what_a_recipe_cannot_say_is_told_with_its_place(pair, settings, code, where):
    with pytest.raises(RecipeError) as caught:
        recipe_of(pair, **settings)
    assert caught.value.problems[0].code == code
    assert where in caught.value.problems[0].where


def test_a_method_that_mergekit_lacks_cannot_be_compatible(pair):
    with pytest.raises(RecipeError) as caught:
        recipe_of(pair, "run_average", arithmetic="mergekit")
    assert caught.value.code == "merge.arithmetic"


def test_layers_that_a_model_has_not_are_refused_before_anything_is_written(pair, tmp_path):
    recipe = recipe_of(pair, slices=[{"sources": [{"model": 0, "layer_range": [3, 9]}]}])
    with pytest.raises(RecipeError) as caught:
        merged(recipe, tmp_path / "out")
    assert caught.value.code == "merge.slice"
    assert "no layer 5" in str(caught.value)
    assert "whose end is not included" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_slices_merge_layers_with_settings_of_their_own(pair, tmp_path):
    both = [{"model": 0, "layer_range": [0, 2]}, {"model": 1, "layer_range": [0, 2]}]
    recipe = recipe_of(
        pair,
        slices=[
            {"sources": both, "parameters": [{"setting": "weight", "model": 0, "value": 3}]},
            {"sources": [{"model": 1, "layer_range": [2, 5]}]},
        ],
    )
    out = merged(recipe, tmp_path / "out")
    first, second = (Checkpoint.open(tune) for tune in pair[1])
    name = UP.format(1)
    mean = (3 * first.tensor(name) + second.tensor(name)) / 4
    torch.testing.assert_close(out.tensor(name), mean, rtol=1e-6, atol=1e-7)
    assert torch.equal(out.tensor(UP.format(4)), second.tensor(UP.format(4)))


def test_one_tensor_can_be_explained_and_an_unknown_one_is_named(pair):
    recipe = recipe_of(pair, parameters=[{"setting": "weight", "model": 1, "value": [0, 2]}])
    base, parents = open_sources(recipe)
    plan = plan_sources(recipe.method, base, parents, read_rules(recipe))
    sources = [base, *parents]
    found = explain_tensor(plan, UP.format(2))
    assert [model["weight"] for model in found["models"]] == [1, 1]
    assert found["layer"] == 0.5
    with pytest.raises(RecipeError) as caught:
        explain_tensor(plan, "model.nrom.weight")
    assert caught.value.code == "merge.no-tensor"
    assert NORM in str(caught.value)
    assert not [line for line in list_warnings(plan, sources) if "license" not in line]


def test_a_plan_is_data(pair):
    models = [{"model": str(tune)} for tune in pair[1]]
    models[0] |= {"density": 0.5}
    plan = open_merge(recipe_of(pair, "ties", models=models, exclude=[NORM])).plan()
    written = json.loads(json.dumps(plan.to_json()))
    tensors = {tensor["name"]: tensor for tensor in written["tensors"]}
    assert sum(tensor["bytes"] for tensor in tensors.values()) == plan.written_bytes
    assert tensors[NORM]["how"] == "copy"
    merged = tensors[UP.format(2)]
    assert merged["how"] == merged["settings"]["name"] == "ties"
    assert merged["models"] == [{"weight": 1.0, "density": 0.5}, {"weight": 1.0}]
    assert [source["source"] for source in merged["sources"]] == list(plan.sources)


def test_the_plan_says_cost_models_and_warnings(pair, tmp_path):
    path = tmp_path / "merge.yaml"
    lines = [
        "version: 1",
        "kind: merge.weights",
        "method: ties",
        f"base_model: {pair[0]}",
        "models:",
    ]
    path.write_text("\n".join([*lines, *(f"  - model: {tune}" for tune in pair[1])]))
    done = CliRunner().invoke(stillroom, ["merge", "plan", str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "takes about" in done.output
    assert "tune1: llama, 5 layers" in done.output
    done = CliRunner().invoke(stillroom, ["merge", "plan", str(path), "--explain", NORM])
    assert "ties" in done.output
    assert load_merge(path).method.method_name() == "ties"
    assert open_merge(load_merge(path)).plan().passes == 4


def test_a_file_of_several_merges_is_run_not_planned(pair, tmp_path):
    path = tmp_path / "theirs.yml"
    one = f"merge_method: linear\nmodels:\n  - {{model: {pair[1][0]}, parameters: {{weight: 1}}}}\n"
    path.write_text(
        f"name: first\n{one}---\nmerge_method: linear\nmodels:\n"
        f"  - {{model: first, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {pair[1][1]}, parameters: {{weight: 1}}}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_merge(path)
    assert caught.value.code == "merge.several"
    out = tmp_path / "out"
    done = CliRunner().invoke(
        stillroom, ["merge", "run", str(path), "--out", str(out), "--quiet"], catch_exceptions=False
    )
    assert done.exit_code == 0
    first, second = (Checkpoint.open(tune).tensor(NORM) for tune in pair[1])
    torch.testing.assert_close(Checkpoint.open(out).tensor(NORM), (first + second) / 2)
    assert (tmp_path / "out.parts" / "first" / "artifact.json").exists()


def test_what_holds_for_no_tensor_is_said(pair):
    recipe = recipe_of(
        pair,
        "task_arithmetic",
        parameters=[
            {"setting": "scale", "tensors": ["*.mpl.*"], "value": 0.5},
            {"setting": "scale", "tensors": ["*.mlp.*"], "value": 0.5},
        ],
        exclude=["*.rotary.*"],
    )
    notes = open_merge(recipe).plan().warnings
    assert "parameters.0 (scale of *.mpl.*) holds for no tensor" in notes
    assert "the pattern '*.rotary.*' of exclude fits no tensor" in notes
    assert not any("parameters.1" in note for note in notes)


def test_a_part_that_holds_for_no_tensor_is_refused(pair):
    recipe = recipe_of(pair, groups=[{"tensors": ["vision.*"], "models": [0]}])
    with pytest.raises(RecipeError, match=r"groups\.0 matches no tensor") as caught:
        open_merge(recipe).plan()
    assert caught.value.code == "merge.unused-group"


def test_a_model_that_is_listed_under_two_names_is_warned_of(pair, tmp_path):
    (base, (first, _)) = pair
    twice, same = tmp_path / "twice", tmp_path / "same"
    shutil.copytree(first, twice)
    shutil.copytree(base, same)
    models = [{"model": str(folder)} for folder in (first, twice, same)]
    merge = open_merge(recipe_of(pair, "ties", models=models))
    lines = [line for line in list_warnings(merge.plan(), merge.sources) if "same model" in line]
    assert sorted(lines) == sorted(
        [
            f"{first.name} and twice are the same model",
            f"the base {base.name} and same are the same model",
        ]
    )
