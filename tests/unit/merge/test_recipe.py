import subprocess
import sys

import pytest
from pydantic import ValidationError

from stillroom.errors import RecipeError
from stillroom.merge.recipe import MergeRecipe
from stillroom.recipes import parse_recipe

MODELS = [{"checkpoint": "a"}, {"checkpoint": "b"}]


def test_a_recipe_is_validated_without_torch():
    code = (
        "import sys; from stillroom.recipes import parse_recipe; "
        "parse_recipe('version: 1\\nkind: merge\\nmethod: ties\\nbase: x\\n"
        "models: [{checkpoint: y}]\\n', 'r.yaml', ()); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_dump_and_validate_again_gives_the_same_recipe():
    recipe = MergeRecipe.model_validate(
        {"method": "linear", "models": MODELS, "select": {"records": "r"}}
    )
    assert MergeRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"method": "ties"}, "merge.base"),
        ({"method": "slerp", "models": MODELS[:1]}, "merge.parents"),
        ({"method": "slerp", "models": [MODELS[0] | {"weight": 2}, MODELS[1]]}, "unused-setting"),
        ({"method": "linear", "models": [MODELS[0] | {"density": 0.5}]}, "merge.unused-setting"),
        ({"method": "linear", "models": [MODELS[0] | {"weight": 0}]}, "merge.weights"),
        ({"method": "linear", "select": {"records": "r", "mixes": [0.5]}}, "merge.base"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_starts(settings, code):
    with pytest.raises((ValidationError, RecipeError), match=code):
        MergeRecipe.model_validate({"models": MODELS} | settings)


def test_the_recipe_says_where_a_problem_stands():
    text = "version: 1\nkind: merge\nmethod: {name: ties, densty: 0.5}\nbase: x\nmodels: []\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "merge.yaml", ())
    assert "merge.yaml:3" in str(caught.value)
    assert "did you mean 'density'?" in str(caught.value)
