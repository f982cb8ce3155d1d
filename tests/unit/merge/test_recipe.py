import pytest
from pydantic import ValidationError

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS
from stillroom.merge.jobs.select import MergeSelectRecipe
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.recipes import parse_recipe

MODELS = [{"model": "a"}, {"model": "b"}]


def test_dump_and_validate_again_gives_the_same_recipe():
    recipe = MergeWeightsRecipe.model_validate(
        {"method": {"name": "ties"}, "base_model": "b", "models": [MODELS[0] | {"density": 0.5}]}
    )
    assert MergeWeightsRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"method": "ties"}, "merge.base"),
        ({"method": "slerp", "models": MODELS[:1]}, "merge.parents"),
        ({"method": "slerp", "models": [MODELS[0] | {"weight": 2}, MODELS[1]]}, "unused-setting"),
        ({"method": "linear", "models": [MODELS[0] | {"density": 0.5}]}, "merge.unused-setting"),
        ({"method": "linear", "models": [MODELS[0] | {"weight": 0}]}, "merge.weights"),
        ({"method": "ties", "base_model": "b", "models": [MODELS[0] | {"density": 2}]}, "density"),
        ({"method": "ties", "base_model": "b", "models": [MODELS[0] | {"densty": 1}]}, "density"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_starts(settings, code):
    with pytest.raises((ValidationError, RecipeError), match=code):
        MergeWeightsRecipe.model_validate({"models": MODELS} | settings)


def test_the_recipe_says_where_a_problem_stands():
    text = "version: 1\nkind: merge.weights\nmethod: {name: ties, densty: 0.5}\nmodels: []\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "merge.yaml", ())
    assert "merge.yaml:3" in str(caught.value)
    assert "did you mean 'density'?" in str(caught.value)


def test_interpolations_need_a_base():
    select = {"records": "r", "interpolations": [0.5]}
    settings = {"method": "linear", "models": MODELS, "select": select}
    with pytest.raises((ValidationError, RecipeError), match=r"merge\.base"):
        MergeSelectRecipe.model_validate(settings)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_model_takes_what_the_method_has_per_model(name):
    method = METHODS.get(name)
    required = {"statistics": ["s"]} if "statistics" in method.model_fields else {}
    models = [MODELS[0]] * max(method.min_models, min(2, method.max_models))
    base = {"base_model": "b"} if method.needs_base else {}
    settings = {"method": {"name": name} | required, "models": models} | base
    assert not MergeWeightsRecipe.model_validate(settings).models[0].settings
    for setting, info in method.per_model_settings().items():
        models = [MODELS[0] | {setting: info.default}, *models[1:]]
        recipe = MergeWeightsRecipe.model_validate(settings | {"models": models})
        assert recipe.models[0].settings == {setting: info.default}
        assert recipe.model_dump(mode="json")["models"][0][setting] == info.default


def test_the_threshold_of_consensus_is_a_setting_of_a_model():
    models = [MODELS[0] | {"threshold": 0.2}, MODELS[1]]
    recipe = MergeWeightsRecipe.model_validate(
        {"method": "consensus", "base_model": "b", "models": models}
    )
    assert [model.settings for model in recipe.models] == [{"threshold": 0.2}, {}]


def test_the_schema_names_the_settings_of_a_model():
    schema = MergeWeightsRecipe.model_json_schema()["$defs"]["ModelEntry"]
    assert {"model", "weight", "density", "epsilon", "gamma", "threshold"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False


def test_a_setting_of_a_model_is_a_number_also_when_its_text_is_quoted():
    models = [MODELS[0] | {"density": "0.5"}]
    recipe = MergeWeightsRecipe.model_validate(
        {"method": "ties", "base_model": "b", "models": models}
    )
    assert recipe.models[0].settings == {"density": 0.5}
