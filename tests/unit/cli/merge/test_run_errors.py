import json

import pytest
from click.testing import CliRunner

from stillroom.cli.merge.run import plan_command
from stillroom.errors import RecipeError
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model")


def test_a_recipe_of_another_kind_has_no_merge_plan(tmp_path):
    recipe = tmp_path / "index.yaml"
    recipe.write_text("version: 1\nkind: rag.index\ndocuments: documents\nembedder: static\n")
    error = CliRunner().invoke(plan_command, [str(recipe)]).exception
    assert isinstance(error, RecipeError)
    assert error.code == "recipe.wrong-kind"
    assert error.exit_code == 2


def test_the_plan_of_a_mergekit_file_warns_of_what_is_overlooked(model, tmp_path):
    path = tmp_path / "theirs.yml"
    path.write_text(
        "merge_method: linear\nextras: 1\n"
        f"models: [{{model: {model}, parameters: {{weight: 1}}}}]\n"
    )
    done = CliRunner().invoke(plan_command, [str(path), "--json"], catch_exceptions=False)
    assert "warning: extras is ignored" in done.stderr
    assert json.loads(done.stdout)["plan"]["method"] == "linear"


def test_arithmetic_is_chosen_once(tmp_path):
    path = tmp_path / "ours.yaml"
    path.write_text("version: 1\nkind: merge.weights\nmethod: linear\nmodels: [{model: a}]\n")
    given = [str(path), "arithmetic=paper", "--arithmetic", "mergekit"]
    error = CliRunner().invoke(plan_command, given).exception
    assert isinstance(error, RecipeError)
    assert error.code == "merge.arithmetic"
    assert error.exit_code == 2
